//! Predicted memory against measured memory.

mod common;

use common::{Scratch, report, smollm2, u64_of};

const MIB: u64 = 1 << 20;

#[test]
fn the_measured_peak_is_at_most_two_mib_below_the_predicted_one() {
    let scratch = Scratch::new("memory");
    let model = smollm2();
    scratch.write("input.txt", "A short text about nothing much. ".repeat(30));
    for context in [256, 2048] {
        let fields = format!(r#""model_requirements": {{"max_sequence_tokens": {context}}},"#);
        for (name, flags) in [("mapped", &[][..]), ("read", &["--ram", "400MiB"])] {
            let plan = scratch.build(&model, &format!("{name}-{context}.bin"), &fields, flags);
            for threads in ["1", "2", "3"] {
                let mut run = scratch.omex();
                run.arg("run").arg(&plan);
                run.args(["-n", "8", "-t", threads, "-p", "Say something."]);
                let report = report(&mut run);
                let predicted = u64_of(&report, "rss_peak_predicted_bytes");
                let measured = u64_of(&report, "rss_peak_measured_bytes");
                assert!(
                    measured <= predicted && predicted - measured <= 2 * MIB,
                    "{name}, context {context}, {threads} threads: \
                     predicted {predicted}, measured {measured}"
                );
            }
        }
    }
}
