#!/usr/bin/env bash
# Builds `omex` for 64-bit Arm Linux (Raspberry Pi 3 to 5, phones) on an x86-64
# machine: the full one, which can make code again on the device, and the small
# runtime. Uses rustup's target where it is installed, else Debian's rustc-web.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=aarch64-unknown-linux-gnu
out="${CARGO_TARGET_DIR:-target}/cross"

fail() { printf 'error: %s\n' "$1" >&2; shift; for line in "$@"; do printf 'help: %s\n' "$line" >&2; done; exit 1; }

command -v aarch64-linux-gnu-gcc >/dev/null ||
    fail "the linker for 64-bit Arm is not installed" "apt-get install gcc-aarch64-linux-gnu"

has_target() { [[ -n "$(compgen -G "$("$1" --print target-libdir --target $target 2>/dev/null)/libstd-*.rlib")" ]]; }
if has_target rustc; then
    :
elif [[ -x /usr/bin/rustc ]] && has_target /usr/bin/rustc; then
    export RUSTC=/usr/bin/rustc
else
    fail "no Rust compiler here has the standard library of $target" \
        "rustup target add $target" \
        "or on Debian: dpkg --add-architecture arm64 && apt-get update && apt-get install rustc-web libstd-rust-web-dev:arm64"
fi

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
cargo build --release --locked --target $target --target-dir "$out" --bin omex
cargo build --profile small --locked --no-default-features --target $target --target-dir "$out" --bin omex
printf 'full runtime:  %s\nsmall runtime: %s\n' "$out/$target/release/omex" "$out/$target/small/omex" >&2
