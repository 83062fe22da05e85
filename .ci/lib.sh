# Sourced by .ci/run and .ci/long: stages with a name, a time and a result.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export LC_ALL=C.UTF-8 NO_COLOR=1
unset HIMA_HOME HIMA_PROFILE HIMA_LANG
GO=${GO:-go}
report=()
failed=0
skipped=0
behind=()
lane=
tmp=$(mktemp -d) || exit 1
trap '[ -z "$lane" ] || kill -- "-$lane" 2>/dev/null; rm -rf "$tmp"' EXIT

# stage NAME COMMAND… runs the command and notes how it went and how long it took. Exit status 77 means: cannot run here. A stage
# that fails does not stop the others: one run tells everything that is wrong.
stage() {
  local name=$1 begin=$SECONDS
  shift
  printf '\n=== %s\n' "$name"
  "$@" </dev/null
  result "$name" $? $((SECONDS - begin))
}

# result NAME STATUS SECONDS [NOTE] takes down how a stage ended.
result() {
  local word
  case $2 in
    0) word=ok ;;
    77) word=SKIPPED; skipped=$((skipped + 1)) ;;
    *) word="FAILED ($2)"; failed=$((failed + 1)) ;;
  esac
  report+=("$(printf '%-12s %5d s  %s%s' "$1" "$3" "$word" "${4:-}")")
}

# beside FUNCTION… runs stages of these names one after the other in the background, where they take only the time that others
# leave: what runs in front mostly waits, or has one test left that uses one core. So nothing in front that looks at a clock gets
# slower, and only what looks at none may run here.
beside() {
  behind=("$@")
  [ $# -gt 0 ] || return
  set -m # gives them a process group of their own, which ends when this script does
  (
    renice -n 19 -p "$BASHPID" >"$tmp/renice"
    for name in "$@"; do
      begin=$SECONDS
      "$name" >"$tmp/$name.out" 2>&1 </dev/null
      echo "$? $((SECONDS - begin))" >"$tmp/$name.end"
    done
  ) &
  lane=$!
  set +m
}

# collect waits for the stages that beside began and shows what they printed.
collect() {
  local name status seconds
  [ -z "$lane" ] || wait "$lane"
  lane=
  for name in "${behind[@]}"; do
    printf '\n=== %s\n' "$name"
    cat "$tmp/$name.out"
    status=1 seconds=0
    read -r status seconds <"$tmp/$name.end"
    result "$name" "$status" "$seconds" ', beside others'
  done
}

# tool NAME ARGS… runs a tool from its own mod file.
tool() { "$GO" tool -modfile=".tools/$1.mod" "$@"; }

# finish prints what ran and leaves with its result.
finish() {
  printf '\n=== what ran (%s, %s cores)\n' "$("$GO" version)" "$(getconf _NPROCESSORS_ONLN)"
  printf '%s\n' "${report[@]}"
  printf '%d stages, %d failed, %d skipped, %d s\n' "${#report[@]}" "$failed" "$skipped" "$SECONDS"
  [ "$failed" -eq 0 ]
  exit
}

# copy_tree DIR copies what git tracks, as it lies in the work tree now.
copy_tree() {
  mkdir -p "$1"
  git ls-files -z | while IFS= read -r -d '' f; do [ -e "$f" ] && printf '%s\0' "$f"; done |
    tar --null -T - -cf - | tar -C "$1" -xf -
}

# fuzz_targets prints "package target" for every fuzz target there is. Asking go test -list would link every test binary.
fuzz_targets() {
  grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sed -E 's|/[^/]*\.go:func | |' | sort
}

# fuzz_build DIR PACKAGE makes the instrumented binary of a package.
fuzz_build() { "$GO" test -c -fuzz . -o "$1/${2//\//_}" "$2"; }

# fuzz_one DIR TIME PACKAGE TARGET fuzzes with one worker and prints its last line, or all of it if it fails. On a busy machine
# the deadline itself may be reported as a failure; there is no failing input then, and the target gets two more tries. Each find
# is made smaller for a minute by default, which would be all that happens in a few seconds.
fuzz_one() {
  local binary=$1/${3//\//_} out
  out=$binary.$4.out
  for _ in 1 2 3; do
    if (cd "$3" && "$binary" -test.run '^$' -test.fuzz "^$4\$" -test.fuzztime "$2" -test.fuzzminimizetime 20x -test.parallel 1 \
      -test.fuzzcachedir "$binary.cache") >"$out" 2>&1 </dev/null; then
      printf -- '--- %s %s: %s\n' "$3" "$4" "$(grep -v '^PASS$' "$out" | tail -n 1)"
      return
    fi
    grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out" || break
  done
  printf -- '--- %s %s FAILED\n%s\n' "$3" "$4" "$(cat "$out")"
  return 1
}

# fuzz_for TIME fuzzes each target for that long, two at a time, with one instrumented binary per package: linking one for each
# target would take longer than the fuzzing. The first of them compiles what all have in common; then two are made at a time too,
# since a linker mostly uses one core.
fuzz_for() {
  local targets pkgs dir=$tmp/fuzzing bad=0
  targets=$(fuzz_targets)
  [ -n "$targets" ] || { echo 'no fuzz target found'; return 1; }
  mkdir -p "$dir"
  export -f fuzz_build fuzz_one
  export GO
  pkgs=$(cut -d ' ' -f 1 <<<"$targets" | sort -u)
  fuzz_build "$dir" "$(head -n 1 <<<"$pkgs")" || bad=1
  tail -n +2 <<<"$pkgs" | xargs -P 2 -I '{}' bash -c 'fuzz_build "$@"' _ "$dir" '{}' || bad=1
  xargs -P 2 -L 1 bash -c 'fuzz_one "$@"' _ "$dir" "$1" <<<"$targets" || bad=1
  rm -rf "$dir"
  return $bad
}

# need_race skips where the race detector cannot be built.
need_race() {
  [ "$("$GO" env CGO_ENABLED)" = 1 ] && command -v "$("$GO" env CC)" >/dev/null && return 0
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev) >"$tmp/apt" 2>&1 || tail -n 3 "$tmp/apt"
  fi
  command -v "$("$GO" env CC)" >/dev/null || { echo 'no C compiler: the race detector cannot be built'; return 77; }
}

# need_netlab makes sure that network namespaces can be made, and installs what that takes.
need_netlab() {
  [ "$(uname -s)" = Linux ] || { echo 'network namespaces are there on Linux only'; return 77; }
  [ "$(id -u)" = 0 ] || { echo 'network namespaces need root'; return 77; }
  if ! command -v ip >/dev/null || ! command -v nft >/dev/null; then
    command -v apt-get >/dev/null || { echo 'iproute2 and nftables are missing'; return 77; }
    (apt-get update && apt-get install -y --no-install-recommends iproute2 nftables) >"$tmp/apt" 2>&1 || tail -n 3 "$tmp/apt"
  fi
  command -v ip >/dev/null && command -v nft >/dev/null || { echo 'iproute2 and nftables could not be installed'; return 77; }
  ip netns add hima-probe 2>/dev/null && ip netns del hima-probe || { echo 'this machine makes no network namespaces'; return 77; }
}

# netlab TIMEOUT runs the tests on simulated networks with real interfaces.
netlab() {
  need_netlab || return
  HIMA_NETLAB=1 "$GO" test -count=1 -p 1 -timeout "$1" -run 'Netlab|RealRouters' ./node ./internal/e2e
}
