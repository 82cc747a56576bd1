#!/usr/bin/env bash
# From a fresh clone to a summary of one of this repository's source files:
# fetches the model, builds omexc and omex, compiles the task container to
# plan.bin and runs it. Needs Rust, a C linker, and python3 with pip.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
binaries="${CARGO_TARGET_DIR:-target}/release"

step() { printf '\n== %s\n' "$*" >&2; }
need() {
    command -v "$1" >/dev/null && return
    printf 'error: %s is not installed\nhelp: %s\n' "$1" "$2" >&2
    exit 1
}

need cargo "see https://rustup.rs, any Rust from 1.95 on"
need cc "apt-get install gcc libc6-dev"
need python3 "apt-get install python3 python3-pip"

step "1 of 4: the model, SmolLM2-135M-Instruct Q4_1 (93 MB to download the first time)"
examples/fetch_model.sh

step "2 of 4: building omexc and omex in release mode (some minutes the first time)"
cargo build --release --locked

step "3 of 4: compiling the container ahead of time: omexc build examples/code_summary.omex.json --target host -o plan.bin"
"$binaries/omexc" build examples/code_summary.omex.json --target host -o plan.bin

step "4 of 4: running the plan: omex run plan.bin"
"$binaries/omex" run plan.bin

cat >&2 <<END

The same plan again:        $binaries/omex run plan.bin
What is in it:              $binaries/omex inspect plan.bin
Where its memory goes:      $binaries/omex debug memory report plan.bin
END
