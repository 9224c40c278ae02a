# shellcheck shell=bash disable=SC2034 # the variables are for those who source it
# What every script of this directory starts with. Source it, do not run it:
#
#   set -euo pipefail
#   # shellcheck source=scripts/lib.sh
#   source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
#
# Afterwards the working directory is the clone's root, and these are set:
#
#   ROOT               the clone
#   CALLER             the directory that the script was called from; a path given
#                      as an argument is relative to it
#   CACHE              downloads and builds that outlive a clone: METAL_ANVIL_CACHE,
#                      default ${XDG_CACHE_HOME:-~/.cache}/metal-anvil
#   TARGET             cargo's target directory, $ROOT/target
#   RELEASE            where the release binaries appear
#   MEDIA              where the boot media's parts appear, target/media
#   LOGS               build logs, target/logs
#   SOURCE_DATE_EPOCH  the commit's time: the only time that enters an output

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    echo "scripts/lib.sh is sourced by the other scripts, it does nothing itself" >&2
    exit 2
fi

_SCRIPT=$(realpath "$0")
CALLER=$PWD
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$ROOT" || exit

# The caller's locale, time zone and umask must not reach an output.
export LC_ALL=C.UTF-8 TZ=UTC
umask 022

CACHE=${METAL_ANVIL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/metal-anvil}
TARGET=$ROOT/target
RELEASE=$TARGET/x86_64-unknown-linux-gnu/release
MEDIA=$TARGET/media
LOGS=$TARGET/logs
export CARGO_TARGET_DIR=$TARGET
# The kernel command line of the media. The last console= is /dev/console, and what
# the installed system gets.
CMDLINE='console=tty0 console=ttyS0,115200n8 console=ttyS1,115200n8 loglevel=6'
mkdir -p "$CACHE" "$MEDIA" "$LOGS"

# A tree without history (an unpacked archive) gets a fixed date.
if [[ -z ${SOURCE_DATE_EPOCH:-} ]]; then
    SOURCE_DATE_EPOCH=$(git -c safe.directory="$ROOT" log -1 --format=%ct 2>/dev/null) || true
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-1767225600}
fi
export SOURCE_DATE_EPOCH

# say TEXT...: one progress line, with the time and the script's name.
say() {
    printf '%(%H:%M:%S)T %s: %s\n' -1 "$(basename "$0")" "$*" >&2
}

# die TEXT...: say what is wrong and what to do about it, and stop.
die() {
    printf '%(%H:%M:%S)T %s: error: %s\n' -1 "$(basename "$0")" "$*" >&2
    exit 1
}

# usage: print the comment block at the top of the calling script as its help.
usage() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$_SCRIPT"
}

# human BYTES: a size that is easy to read.
human() {
    numfmt --to=iec-i --suffix=B --format='%.1f' "$1"
}

# logged NAME COMMAND...: run quietly into $LOGS/NAME.log; on failure show the
# log's end and stop.
logged() {
    local log=$LOGS/$1.log
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "failed: $* (whole log: $log)"
    fi
}

# install_new FILE DESTINATION: put a finished file in place in one step, so that
# a reader never sees half of it.
install_new() {
    install -D -m 0644 "$1" "$2.new.$$"
    mv -f "$2.new.$$" "$2"
}

# pe_with_sections OUT NAME=FILE...: an EFI program of systemd's stub and these
# sections. objcopy puts them behind the stub's own, at addresses that it has to be told,
# and the time of day into the header: it becomes SOURCE_DATE_EPOCH, and the checksum,
# which no firmware looks at, none.
pe_with_sections() {
    local stub=/usr/lib/systemd/boot/efi/linuxx64.efi.stub out=$1 at=0 align size vma part sections=() header
    shift
    align=$((16#$(objdump -p "$stub" | awk '$1 == "SectionAlignment" {print $2}')))
    while read -r size vma; do
        if ((16#$size + 16#$vma > at)); then at=$((16#$size + 16#$vma)); fi
    done < <(objdump -h -w "$stub" | awk '$1 ~ /^[0-9]+$/ {print $3, $4}')
    for part in "$@"; do
        at=$(((at + align - 1) / align * align))
        sections+=(--add-section ".$part" --change-section-vma ".${part%%=*}=$at")
        at=$((at + $(stat -L -c %s "${part#*=}")))
    done
    objcopy "${sections[@]}" "$stub" "$out"
    header=$(od -An -t u4 -j 60 -N 4 "$out")
    poke "$out" $((header + 8)) "$SOURCE_DATE_EPOCH"
    poke "$out" $((header + 24 + 64)) 0
}

# poke FILE OFFSET NUMBER: write 32 bits, the least first.
poke() {
    local number
    number=$(printf '%08x' "$3" | sed -E 's/(..)(..)(..)(..)/\\x\4\\x\3\\x\2\\x\1/')
    printf '%b' "$number" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

_package_installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

_apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@"
}

_apt_updated=
_apt_update() {
    [[ -n $_apt_updated ]] || { _apt update && _apt_updated=1; }
}

_apt_install() {
    _apt_update
    _apt install -y --no-install-recommends "$@"
}

# without_services COMMAND...: run it while Debian's packages start no service that they
# install: on a machine that only tests, services have no business.
without_services() (
    policy=${METAL_ANVIL_POLICY_RC_D:-/usr/sbin/policy-rc.d}
    if ((EUID == 0)) && [[ ! -e $policy ]]; then
        # Whatever ends this: left behind, it would keep every service of the host down. A
        # signal has to become an exit for that.
        trap 'rm -f "$policy"' EXIT
        trap 'exit 129' HUP
        trap 'exit 130' INT
        trap 'exit 143' TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 0755 "$policy"
    fi
    "$@"
)

# need_packages PACKAGE...: install the Debian packages that are missing. The
# package lists are fetched once per run and only when something is missing.
need_packages() {
    local missing=() package log=$LOGS/apt.log
    for package in "$@"; do
        _package_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "these Debian packages are needed: ${missing[*]} (no apt-get here)"
    ((EUID == 0)) || die "these Debian packages are missing: ${missing[*]}; run as root, or install them first"
    say "installing ${missing[*]}"
    if ! _apt_install "${missing[@]}" >"$log" 2>&1; then
        say "apt-get failed, trying once more"
        _apt_updated=
        sleep 3
        if ! _apt_install "${missing[@]}" >>"$log" 2>&1; then
            tail -n 20 "$log" >&2
            die "cannot install ${missing[*]} (whole log: $log)"
        fi
    fi
}

# fetch_packages DIRECTORY PACKAGE...: unpack Debian packages below DIRECTORY
# without installing them, and print "package version sha256" lines. Each version is
# downloaded once into the cache; nothing else on this machine changes.
fetch_packages() {
    local directory=$1 kept=$CACHE/debs log=$LOGS/fetch-packages.log package version deb
    shift
    need_packages apt dpkg
    mkdir -p "$directory" "$kept"
    _download_missing "$kept" "$@" >"$log" 2>&1 ||
        { _apt_updated='' && _apt_update && _download_missing "$kept" "$@"; } >>"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "cannot download $* (whole log: $log)"; }
    _candidates "$@" | while read -r package version; do
        deb=$(_deb_path "$kept" "$package" "$version")
        dpkg-deb -x "$deb" "$directory" || die "cannot unpack $deb; delete it and try again"
        echo "$package $version $(sha256sum <"$deb" | cut -d ' ' -f 1)"
    done
}

# "package version" of what apt would install for each PACKAGE.
_candidates() {
    apt-cache policy "$@" | awk '
        /^[^ ]/ {sub(":$", "", $1); package = $1}
        $1 == "Candidate:" && $2 != "(none)" {print package, $2}'
}

# Where apt-get download puts VERSION of PACKAGE (it writes ":" as "%3a").
_deb_path() {
    local found
    for found in "$1/$2_${3//:/%3a}"_{amd64,all}.deb; do
        [[ -s $found ]] && echo "$found" && return
    done
    return 1
}

_download_missing() {
    local kept=$1 package version found missing=()
    shift
    found=$(_candidates "$@")
    (($(wc -l <<<"$found") == $#)) || { echo "no candidate for some of: $*"; return 1; }
    while read -r package version; do
        _deb_path "$kept" "$package" "$version" >/dev/null || missing+=("$package")
    done <<<"$found"
    ((${#missing[@]})) || return 0
    (cd "$kept" && _apt -o APT::Sandbox::User=root download "${missing[@]}")
}

# need_venv REQUIREMENTS LINK: Python packages, all of them pinned by hash, in target/LINK.
need_venv() {
    local requirements=$1 link=$2 python=/usr/bin/python3 key
    key=$({ "$python" --version; cat "$requirements"; } | sha256sum | cut -c1-16)
    local dir=$CACHE/venv-$key
    if [[ ! -e $dir/complete ]]; then
        say "making the Python environment $link"
        rm -rf "$dir"
        logged venv "$python" -m venv "$dir"
        logged pip "$dir/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
            --only-binary :all: --requirement "$requirements"
        touch "$dir/complete"
    fi
    ln -sfnT "$dir" "$TARGET/$link"
}

# fetch_ipxe FILE: Debian 13's iPXE for UEFI, which Debian 12's is too old for
# (autoexec.ipxe). The package, told by its digest, comes from the cache, the mirror, or, once
# a newer one has taken its place there, from Debian's archive of all that ever was; what is
# installed here, and where from, does not change.
fetch_ipxe() {
    local version=1.21.1+git20250501.dad20602+dfsg-1
    local digest=eeaca79dbde0fb86c102bf1d362c6f6a67ed0ddab38b3dd12e1b332339f5dd99
    local mirror=${METAL_ANVIL_MIRROR:-http://deb.debian.org/debian} log=$LOGS/ipxe.log kept own from
    local found=
    local snapshot=${METAL_ANVIL_SNAPSHOT:-https://snapshot.debian.org/archive/debian/20250901T000000Z}
    kept=$CACHE/debs/ipxe-$version-$digest.deb
    if [[ ! -s $kept ]]; then
        own=$(mktemp -d)
        for from in "$mirror" "$snapshot"; do
            say "downloading iPXE $version from $from"
            /usr/lib/apt/apt-helper -o APT::Sandbox::User=root download-file \
                "$from/pool/main/i/ipxe/ipxe_${version}_all.deb" "$own/found.deb" "SHA256:$digest" >>"$log" 2>&1 && found=1 && break
            tail -n 2 "$log" >&2
        done
        [[ -n $found ]] || die "cannot download ipxe $version of Debian 13: neither $mirror nor $snapshot gives the package with SHA-256 $digest; put it into $kept (whole log: $log)"
        install_new "$own/found.deb" "$kept"
        rm -rf "$own"
    fi
    sha256sum --quiet -c - <<<"$digest  $kept" >&2 || die "$kept is not the package that scripts/lib.sh names; delete it and try again"
    dpkg-deb --fsys-tarfile "$kept" | tar -xO ./usr/lib/ipxe/ipxe-amd64.efi >"$1"
}

# _rust_ok VERSION: is a whole tool chain of at least this version in PATH?
_rust_ok() {
    local found
    found=$(rustc --version 2>/dev/null | awk '{print $2}') || return 1
    [[ -n $found ]] || return 1
    [[ $(printf '%s\n' "$1" "$found" | sort -V | head -n 1) == "$1" ]] || return 1
    cargo --version && cargo clippy --version && cargo fmt --version
} >/dev/null 2>&1

# need_rust: cargo, rustc, clippy and rustfmt of at least Cargo.toml's
# rust-version in PATH; the caller's own when it is new enough, otherwise
# Debian 12's packages.
need_rust() {
    local wanted
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    [[ -n $wanted ]] || die "Cargo.toml names no rust-version"
    # Linking, and ring's C and assembly parts.
    need_packages gcc libc6-dev
    _rust_ok "$wanted" && return
    PATH=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH
    _rust_ok "$wanted" && return
    PATH=/usr/bin:$PATH
    need_packages ca-certificates cargo-web rustc-web rust-web-clippy rustfmt-web
    hash -r
    _rust_ok "$wanted" || die "rustc is $(rustc --version 2>&1); Cargo.toml wants $wanted or newer"
}

# build_media INITRD DIRECTORY: every medium that is released, into DIRECTORY.
build_media() {
    scripts/build-iso --initrd "$1" --output "$2/metal-anvil.iso"
    scripts/build-iso --initrd "$1" --uki --output "$2/metal-anvil-uki.iso"
    scripts/build-uki --initrd "$1" --output "$2/metal-anvil.efi"
    # A name that the site's own DNS servers (RDNSS, DNSSL) have to know.
    scripts/build-iso --ipxe http://metal-boot:4242 --output "$2/metal-anvil-ipxe.iso"
}
