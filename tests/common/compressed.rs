//! Plans that read compressed pages.

use std::path::{Path, PathBuf};

use crate::common::{Scratch, container, ok};

const FLAGS: [&str; 10] = [
    "--weights",
    "paged",
    "--ram",
    "30MiB",
    "--page-slots",
    "6MiB",
    "--ubatch-size",
    "16",
    "--target",
    "slow.toml",
];

/// A machine like this one whose storage is that of an SD card.
pub(crate) fn slow_target(scratch: &Scratch) {
    let arch = std::env::consts::ARCH;
    scratch.write(
        "slow.toml",
        format!(
            "name = \"slow\"\narch = \"{arch}\"\nfeatures = []\ncores = 2\nthreads = 2\n\
             page_size = \"4KiB\"\nl1d = \"32KiB\"\nl2 = \"1MiB\"\nmemory_gb_per_s = 10\n\
             storage_mb_per_s = 90\nzstd_mb_per_s = 500\nram_total = \"4GiB\"\nram_app = \"4GiB\"\n"
        ),
    );
}

/// A model of 16-bit floats, of which zstd saves a quarter.
pub(crate) fn floats(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("floats.gguf");
    let mut synth = scratch.omexc();
    synth.args([
        "synth", "--shape", "tiny", "--layers", "4", "--type", "BF16",
    ]);
    synth.args(["--embedding", "512", "--feed-forward", "1536"]);
    ok(synth.arg("-o").arg(&path));
    path
}

pub(crate) fn build(scratch: &Scratch, model: &Path, name: &str, compression: &str) -> PathBuf {
    let text = container(
        model,
        r#""model_requirements": {"max_sequence_tokens": 256},"#,
    );
    let loads = r#""type": "model_load","#;
    let text = text.replace(
        loads,
        &format!("{loads} \"compression\": \"{compression}\","),
    );
    let file = scratch.write(&format!("{name}.json"), text);
    let plan = scratch.path(name);
    let mut build = scratch.omexc();
    build.arg("build").arg(file).arg("-o").arg(&plan);
    ok(build.arg("--any-path").args(FLAGS));
    plan
}
