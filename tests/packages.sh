#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The packages in empty systems. In each SYSTEM the .deb is installed and the .tar.gz unpacked, each in a copy of its own, where
# nothing of the machine that built them can be reached, the network included. The program must answer about a picture; then, in
# copies that have compilers, programs in C and C++ and policies are built with what the package brings, and run.
#   packages.sh DEB TAR [SYSTEM...]      SYSTEM: bookworm (Debian 12), noble (Ubuntu 24.04); without one, both
# As root. Systems are kept in ~/.cache/espalier/systems for the next time. Ends with `N passed, N failed`.
set -euo pipefail
tests=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
deb=$(readlink -f "$1") tar=$(readlink -f "$2")
shift 2
[ $# -gt 0 ] || set -- bookworm noble
kept=${XDG_CACHE_HOME:-$HOME/.cache}/espalier/systems
fail() { echo "packages.sh: $1" >&2; exit "${2:-1}"; }
[ "$(id -u)" -eq 0 ] || fail "not root, and systems of their own need it" 2

work=$(mktemp -d "${TMPDIR:-/var/tmp}/espalier-packages.XXXXXX")
log=$work/log passed=0 failed=0
trap 'rm -rf "$work"' EXIT

# inside ROOT COMMAND...: with /proc, nothing of this machine's environment, and no network.
inside() {
  unshare --mount --pid --net --fork --kill-child bash -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$1" \
    /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "${@:2}"
}

# check WHAT COMMAND...: counts it, and shows what a failing one said.
check() {
  local status=0
  "${@:2}" >"$log" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
  echo "$system, $form: $1: $([ "$status" -eq 0 ] && echo passed || echo "FAILED ($status)")"
  [ "$status" -eq 0 ] || tail -n 30 "$log"
}

# A system with nothing but what its packaging needs, and one with compilers. A half-made one is not taken for a whole.
make_systems() {
  local name=$1 bare=$kept/$1 options=(--variant=minbase) source=()
  mkdir -p "$kept"
  if [ ! -d "$bare" ]; then
    if [ "$name" = noble ]; then
      options+=(--components=main,universe)
      # Debian has no package of Ubuntu's keys.
      [ -e /usr/share/keyrings/ubuntu-archive-keyring.gpg ] || options+=(--no-check-gpg)
      # Nor has its debootstrap heard of this release; since gutsy one script makes all of them.
      [ -e /usr/share/debootstrap/scripts/noble ] || source=(http://archive.ubuntu.com/ubuntu gutsy)
    fi
    rm -rf "$bare.partial"
    debootstrap "${options[@]}" "$name" "$bare.partial" "${source[@]}" >"$log" 2>&1 ||
      { tail -n 5 "$log"; fail "debootstrap $name failed"; }
    mv "$bare.partial" "$bare"
  fi
  if [ ! -d "$bare-compilers" ]; then
    rm -rf "$bare-compilers.partial"
    cp -a "$bare" "$bare-compilers.partial"
    chroot "$bare-compilers.partial" env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get update &&
      apt-get install -y --no-install-recommends g++ make cmake pkg-config libgtest-dev' >"$log" 2>&1 ||
      { tail -n 5 "$log"; fail "compilers for $name failed"; }
    mv "$bare-compilers.partial" "$bare-compilers"
  fi
}

install_deb() { cp "$deb" "$root/espalier.deb" && inside "$root" dpkg --install /espalier.deb && rm "$root/espalier.deb"; }
install_tar() { cp "$tar" "$root/espalier.tar.gz" && inside "$root" tar -xzf /espalier.tar.gz -C /opt && rm "$root/espalier.tar.gz"; }

# new_root SYSTEM: a fresh copy with the package in it; sets `root` and `prefix`.
new_root() {
  root=$work/root
  rm -rf "$root"
  cp -a "$kept/$1" "$root"
  check "it installs on $1" "install_$form"
  prefix=/usr
  [ "$form" = deb ] || prefix=/opt/$(basename "$tar" .tar.gz)
  model=$prefix/share/espalier/models/demo
  examples=$prefix/share/espalier/examples
  picture=$examples/demo/shape/4.png
}

says_version() { inside "$root" "$prefix/bin/espalier" --version | tee /dev/stderr | grep '^espalier [0-9]' >/dev/null; }
# With the bundled model, which it must find by itself. The picture is a circle.
answers() { # ARGUMENT...
  inside "$root" "$prefix/bin/espalier" generate --image "$picture" --prompt "what shape?" --greedy "$@" | tee /dev/stderr |
    grep -x circle >/dev/null
}
# All that is loaded lies in the package, but for the libraries of the C and C++ compilers.
loads_its_own() {
  local foreign
  foreign=$(inside "$root" ldd "$prefix/lib/libespalier.so" "$prefix/bin/espalier" | tee /dev/stderr | grep -v "^/" |
    grep -vE "=> $prefix/(bin/../)?lib/espalier/lib/[^/]+ \(|=> /lib/[^/]+/lib(c|m|dl|rt|util|pthread|stdc\+\+|gcc_s)\.so|ld-linux|linux-vdso" || true)
  [ -z "$foreign" ]
}
plugin_acts() {
  inside "$root" "$prefix/bin/espalier" generate --image "$picture" --prompt "what shape?" --json \
    --policy-plugin /built/keep_centre_policy.so --policy keep_centre:share=1/2 | tee /dev/stderr |
    grep '"site":"projector_output"' >/dev/null
}
leaves_nothing() { inside "$root" dpkg --purge espalier && ! find "$root/usr" -iname '*espalier*' | grep .; }

build_programs() {
  local found=()
  [ "$prefix" = /usr ] || found=("-DCMAKE_PREFIX_PATH=$prefix")
  inside "$root" cmake -S /consumer -B /built -DCMAKE_BUILD_TYPE=Release "-DESPALIER_EXAMPLES=$examples" "${found[@]}" &&
    inside "$root" cmake --build /built -j "$(nproc)" --target answer own_policy keep_centre_policy &&
    inside "$root" cmake -S /consumer/c -B /built_c "-DESPALIER_EXAMPLES=$examples" "${found[@]}" &&
    inside "$root" cmake --build /built_c
}
pkg_config() { inside "$root" /consumer/pkg_config.sh "$prefix/lib/pkgconfig" "$examples" /built_pc "$model" "$picture"; }

for system in "$@"; do
  make_systems "$system"
  for form in deb tar; do
    new_root "$system"
    check 'espalier --version' says_version
    check 'a question about a picture' answers
    check 'the same with a policy' answers --policy fastv:keep_ratio=1/2
    check 'its libraries are its own' loads_its_own
    [ "$form" = tar ] || check 'purged, it leaves nothing' leaves_nothing

    new_root "$system-compilers"
    cp -r "$tests/consumer" "$root/consumer"
    check 'find_package(Espalier), from C++ and C' build_programs
    check 'a program in C++' inside "$root" /built/answer "$model" "$picture"
    check 'a program with a policy of its own' inside "$root" /built/own_policy "$model" "$picture"
    check 'a policy as a plugin' plugin_acts
    for example in generate chat two_tickets samples; do
      check "examples/c/$example.c" inside "$root" "/built_c/$example" "$model" "$picture" "what shape?"
    done
    check 'pkg-config espalier, from C and C++' pkg_config
  done
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
