# Sourced by .ci/run and .ci/long: stages with a name, a time and a result.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
export LC_ALL=C.UTF-8 NO_COLOR=1
unset HIMA_HOME HIMA_PROFILE HIMA_LANG
GO=${GO:-go}
report=()
failed=0
skipped=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

# stage NAME COMMAND… runs the command and notes how it went and how long it took. Exit status 77 means: cannot run here. A stage
# that fails does not stop the others: one run tells everything that is wrong.
stage() {
  local name=$1 begin=$SECONDS status word
  shift
  printf '\n=== %s\n' "$name"
  "$@" </dev/null
  status=$?
  case $status in
    0) word=ok ;;
    77) word=SKIPPED; skipped=$((skipped + 1)) ;;
    *) word="FAILED ($status)"; failed=$((failed + 1)) ;;
  esac
  report+=("$(printf '%-12s %5d s  %s' "$name" $((SECONDS - begin)) "$word")")
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

# fuzz_one BINARY PACKAGE TARGET TIME fuzzes with one worker and prints its last line, or all of it if it fails. On a busy machine
# the deadline itself may be reported as a failure; there is no failing input then, and the target gets a second try. Each find is
# made smaller for a minute by default, which would be all that happens in a few seconds.
fuzz_one() {
  local out=$1.$3.out
  fuzz_run() { (cd "$2" && "$1" -test.run '^$' -test.fuzz "^$3\$" -test.fuzztime "$4" -test.fuzzminimizetime 20x -test.parallel 1 -test.fuzzcachedir "$1.cache") >"$out" 2>&1 </dev/null; }
  if fuzz_run "$@" || { grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out" && fuzz_run "$@"; }; then
    printf -- '--- %s %s: %s\n' "$2" "$3" "$(grep -v '^PASS$' "$out" | tail -n 1)"
  else
    printf -- '--- %s %s FAILED\n%s\n' "$2" "$3" "$(cat "$out")"
    return 1
  fi
}

# fuzz TIME fuzzes each target for that long, two at a time, with one instrumented binary per package: linking one for each
# target would take longer than the fuzzing.
fuzz() {
  local targets pkg binary bad=0
  targets=$(fuzz_targets)
  [ -n "$targets" ] || { echo 'no fuzz target found'; return 1; }
  export -f fuzz_one
  for pkg in $(cut -d ' ' -f 1 <<<"$targets" | sort -u); do
    binary=$tmp/fuzz-${pkg//\//_}
    "$GO" test -c -fuzz . -o "$binary" "$pkg" || { bad=1; continue; }
    grep "^$pkg " <<<"$targets" | cut -d ' ' -f 2 | xargs -I '{}' -P 2 bash -c 'fuzz_one "$@"' _ "$binary" "$pkg" '{}' "$1" || bad=1
    rm -f "$binary"
  done
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
