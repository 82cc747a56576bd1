//! `omexc build --emit`: the stages of a compilation as text.

use std::fmt::Write;

use clap::ValueEnum;
use omex_codegen::{Isa, Unsupported};
use omex_compiler::ir::text::spec_text;
use omex_compiler::pipeline::Compiled;
use omex_kernels::KernelSpec;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// The graph after each pass
    Graph,
    /// The shape of each generated kernel, phases and steps
    Schedule,
    /// Every slot with its place and lifetime
    Arena,
    /// Which pages stay, and when each other one is read
    Paging,
    /// The kernels in cranelift's IR, whichever back end made the plan's code
    Clif,
    /// The generated kernels' instructions
    Asm,
    /// The whole plan
    Plan,
}

/// The text of one stage.
pub(crate) fn text(stage: Stage, compiled: &Compiled, isa: &Isa) -> String {
    match stage {
        Stage::Graph => {
            let mut text = String::new();
            for (stage, graph) in &compiled.stages.graphs {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "; {}\n{graph}", stage.name());
            }
            text
        }
        Stage::Schedule => {
            let graphs = &compiled.stages.graphs;
            let (_, selected) = graphs.last().expect("select made a graph");
            shapes(compiled, isa) + &compiled.stages.schedule.text(selected)
        }
        Stage::Arena => omex_compiler::emit::text::arena_text(&compiled.plan),
        Stage::Paging => omex_compiler::paging::paging_text(&compiled.plan),
        Stage::Plan => omex_compiler::emit::text::plan_text(&compiled.plan),
        Stage::Clif => kernels(compiled, isa, omex_codegen::clif_text),
        Stage::Asm => kernels(compiled, isa, omex_codegen::asm_text),
    }
}

/// What the code generator's cost model chose, a line for each generated kernel.
fn shapes(compiled: &Compiled, isa: &Isa) -> String {
    let with_code = compiled.plan.kernels.iter().filter(|k| k.code.is_some());
    let lines = with_code.map(|kernel| {
        let shape = omex_codegen::shape(kernel.spec(), isa)
            .unwrap_or_else(|e| panic!("a kernel with code has no shape: {e}"));
        format!("; {}: {shape}\n", spec_text(kernel.spec()))
    });
    lines.collect()
}

fn kernels(
    compiled: &Compiled,
    isa: &Isa,
    print: fn(&KernelSpec, &Isa) -> Result<String, Unsupported>,
) -> String {
    let mut text = String::new();
    for kernel in &compiled.plan.kernels {
        if kernel.code.is_some() {
            let code = print(kernel.spec(), isa)
                .unwrap_or_else(|e| panic!("a kernel with code has no text: {e}"));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "; {:?}\n{code}", kernel.spec());
        }
    }
    text
}
