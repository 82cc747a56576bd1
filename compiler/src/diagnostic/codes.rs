//! Every code, what it means and the exit status it leads to.
//!
//! Numbers are never reused. A new code is one entry in the table below, in the range of its area:
//! 1.. JSON, 20.. container, 60.. references, 80.. targets, 100.. models, 150.. tokenizers and prompts,
//! 180.. memory, 200.. files, 220.. plans, 240.. policy, 260.. command line, 280.. runs.

use std::fmt;

/// Exit statuses of both binaries (`reference`: 128 + signal number for signals).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExitStatus {
    Success,
    TaskFailed,
    Usage,
    InvalidInput,
    MemoryBudget,
    Io,
    Integrity,
    Policy,
    Deadline,
    Interrupted,
    Terminated,
}

impl ExitStatus {
    pub fn as_u8(self) -> u8 {
        match self {
            ExitStatus::Success => 0,
            ExitStatus::TaskFailed => 1,
            ExitStatus::Usage => 2,
            ExitStatus::InvalidInput => 3,
            ExitStatus::MemoryBudget => 4,
            ExitStatus::Io => 5,
            ExitStatus::Integrity => 6,
            ExitStatus::Policy => 7,
            ExitStatus::Deadline => 124,
            ExitStatus::Interrupted => 130,
            ExitStatus::Terminated => 143,
        }
    }
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> std::process::ExitCode {
        std::process::ExitCode::from(status.as_u8())
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $exit:ident, $title:literal, $story:literal;)*) => {
        /// A kind of finding, written `OMX0012`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Code {
            $(#[doc = $title] $name = $number,)*
        }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$name,)*];

            /// What is wrong, in a few words.
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title,)* }
            }

            /// What it means and what to do, in a paragraph.
            pub fn story(self) -> &'static str {
                match self { $(Code::$name => $story,)* }
            }

            pub fn exit_status(self) -> ExitStatus {
                match self { $(Code::$name => ExitStatus::$exit,)* }
            }
        }
    };
}

codes! {
    JsonSyntax = 1, InvalidInput, "the container is not JSON",
        "A container is one JSON object (RFC 8259): keys and strings in double quotes, commas between members and none after the last, no comments. The caret stands where reading stopped; the mistake is often just before it.";
    JsonEncoding = 2, InvalidInput, "the text is not valid Unicode",
        "Containers are UTF-8 without a byte order mark, and a \\u escape of a surrogate must come in pairs: \\ud83d\\ude00 is an emoji, \\ud83d alone is nothing. Save the file as UTF-8 without BOM.";
    EmptyContainer = 3, InvalidInput, "the container is empty",
        "There is no JSON value in the file. The smallest container names `omex_version`, `task_id`, `task_type` and a `task_flow` or an `execution_graph`.";
    DuplicateKey = 4, InvalidInput, "a key appears twice in one object",
        "JSON parsers disagree on which of two equal keys counts, so a container that has them would mean different things to different tools. Remove one.";
    TooDeep = 5, InvalidInput, "the JSON is nested too deeply",
        "No container needs more than 128 levels of arrays and objects. The limit keeps the reader's stack bounded.";
    NumberOutOfRange = 6, InvalidInput, "a number is out of range",
        "Whole numbers are unsigned and below 2^64 and are never rounded; other numbers must be finite as 64-bit floats. 1e999 is neither.";
    TooLarge = 7, InvalidInput, "the input is larger than the format allows",
        "Limits keep reading a hostile file within bounded time and RAM. They are far above what a task needs: 256 MiB of JSON, 2^20 nodes.";
    WrongType = 8, InvalidInput, "a value has the wrong type",
        "The field exists, but holds for example a string where a number belongs. Numbers are written without quotes, lists in brackets.";
    MissingField = 9, InvalidInput, "a field is missing",
        "The object lacks a field without which it has no meaning.";
    UnknownField = 10, InvalidInput, "a field is not known",
        "The field is not part of the format and has no effect. This is a warning, so that containers may carry notes of other tools; with --strict it is an error. A typing mistake is the usual cause.";
    UnknownVersion = 11, InvalidInput, "the container's version is not known",
        "`omex_version` is 0.1, 0.2 or 0.3, with any patch number, as a string. A later version may mean something that this compiler cannot know.";
    InvalidValue = 12, InvalidInput, "a value is not allowed here",
        "The value has the right type, but is outside its range or not among the known names.";
    NewerField = 13, InvalidInput, "a field is newer than the container's version",
        "The field came with a later format version than `omex_version` names. It takes effect all the same; raise the version, so that older tools refuse the container instead of ignoring the field.";

    DuplicateId = 20, InvalidInput, "two nodes or stages have the same id",
        "Ids name nodes in `depends_on` and `entry_node`, and stages in messages and traces, so they must differ.";
    DanglingName = 21, InvalidInput, "a name refers to nothing",
        "`depends_on` and `entry_node` name nodes by `id`. No node has this id.";
    Cycle = 22, InvalidInput, "the nodes depend on each other in a circle",
        "A node starts when all that it depends on is done. In a circle none can start. Artefacts count too: a node depends on the node that outputs what it takes as input.";
    EntryNode = 23, InvalidInput, "the entry node is not a root",
        "`entry_node` is where the task starts, so it depends on nothing.";
    Unreachable = 24, InvalidInput, "a node cannot be reached from the entry node",
        "Every node must depend, directly or not, on `entry_node`; otherwise it is not part of the task.";
    ArtefactConflict = 25, InvalidInput, "two nodes output the same artefact",
        "An artefact has one producer. Give the outputs different names.";
    StageReference = 26, InvalidInput, "a stage refers to something it cannot use",
        "Stages name each other's `output`. A stage may use outputs of earlier stages only, and of the right kind: `forward_pass` takes a model and tokens, samplers take logits, `decode` takes tokens.";
    FlowShape = 27, InvalidInput, "the flow lacks a stage",
        "A flow is an inference program: model_load, tokenize, forward_pass, a sampler (greedy_sample or sample), decode, each at most once.";
    LimitsDiffer = 28, InvalidInput, "the container states several RAM limits",
        "`context.memory_limit_mb`, `memory_profile.max_ram_mb` and --ram all bound the RAM of the whole process; the smallest wins. MB means MiB.";
    ModelsDiffer = 29, InvalidInput, "the container names several models",
        "A node's `model_reference` wins over the flow's `model_path` for that node.";
    RunnerReplaced = 30, InvalidInput, "a remote runner is replaced by the local CPU",
        "`remote_inference_node` and `zsei-guided-agent` run locally unless a remote is configured and allowed. Under --strict this is an error.";
    WindowShape = 31, InvalidInput, "the token window cannot slide",
        "`stride` is how far the window moves, so it is at least 1 and at most `window_size`: a larger one would skip tokens.";
    PromptTemplate = 33, InvalidInput, "the prompt's template is wrong",
        "A template is plain text in which `{{input}}` stands once, where the window goes. Other `{{...}}` have no meaning and are refused.";
    NotSupported = 34, InvalidInput, "this is not supported yet",
        "The container is valid, but asks for something that this version of the compiler cannot build. It is refused by name, because ignoring it would give a result that was not asked for.";
    NothingToRun = 35, InvalidInput, "the container describes no work",
        "A container has an `execution_graph`, a `task_flow`, or both.";
    NoEffect = 36, InvalidInput, "a field has no effect here",
        "The field is understood, but changes nothing in this task.";
    UnsafePath = 37, InvalidInput, "a path leaves the task's folder",
        "A container may come from anyone, so it may only read and write below the working directory: no absolute paths, no `..`, no NUL. Name other files on the command line (--input NAME=PATH), which only you control.";
    StageOrder = 38, InvalidInput, "an input has no meaning for this node",
        "The node takes the artefact of another node, and of a certain kind: `inference_slices` takes chunks, `output_merge_and_decode` takes what an inferring node outputs.";
    RuntimeLimits = 39, InvalidInput, "a limit cannot be met",
        "The limits of the container contradict each other or what the task needs.";

    ReferenceSyntax = 60, InvalidInput, "a reference cannot be read",
        "References are `zsei://models/NAME?q8`, `zsei://frameworks/NAME`, `local://PATH` or a plain path.";
    NotInRegistry = 61, Io, "the registry does not know this name",
        "zsei:// names are looked up in --registry, then in omex.registry.toml beside the container, then in ~/.omex/registry.toml. Nothing is fetched from the network. Add an entry with the path of the file.";
    RegistryInvalid = 62, InvalidInput, "the registry cannot be read",
        "A registry is TOML: `[models.NAME]` with `path` and optionally `sha256`, `[models.NAME.q8]` for a quantization, `[default]` with `model`.";
    ModelMissing = 63, Io, "the model file is not there",
        "local:// and plain paths are looked up beside the container, then in the working directory, then in the cache.";
    NoModel = 65, Io, "no model is named",
        "The model of an inferring node is its `model_reference`, else the flow's `model_path`, else -m, else the registry's `[default]`. None of them names one.";
    QuantityInvalid = 66, InvalidInput, "a quantity cannot be read",
        "Quantities are numbers with a unit: 1200MiB, 1.5GiB, 60min, 2s. A fraction of a byte or of a millisecond is dropped; the result is below 2^64.";
    QuantizationUnknown = 67, InvalidInput, "a quantization is not known",
        "Quantizations are named as in GGUF (q4_0, q4_k, q8_0, bf16, ...) or by width (int4, int8, q4, q8).";

    TargetUnknown = 80, Usage, "the target is not known",
        "`omexc targets` lists the device profiles. A profile of your own is a TOML file: --target path/to/device.toml.";
    ProfileInvalid = 81, InvalidInput, "the device profile is wrong",
        "A profile states facts that the compiler relies on, so a value that no device can have is refused instead of being used.";
    FeatureMissing = 82, Integrity, "the CPU lacks a feature that the plan needs",
        "The plan was built for a CPU with this instruction set extension. Build it for this machine: --target host.";

    ModelInvalid = 100, InvalidInput, "the model file is damaged or not a model",
        "The file breaks the rules of its format. Nothing of it is used. Compare its size and digest with those of the publisher and fetch it again.";
    ModelTruncated = 101, InvalidInput, "the model file ends too early",
        "The file says that it holds more than it does: an interrupted download is the usual cause.";
    ModelUnsupported = 102, InvalidInput, "the model is of a kind that is not supported",
        "The file is well formed, but its architecture, a tensor's type or a feature is not one that this compiler can build. It is refused instead of being run wrongly.";
    ModelMetadata = 103, InvalidInput, "the model's metadata is wrong",
        "A key that the architecture needs is missing, has the wrong type, or contradicts another.";
    ModelTensor = 104, InvalidInput, "a tensor of the model is wrong",
        "A tensor is missing, has another shape or type than the metadata implies, or holds values that are not numbers.";
    ModelFamily = 105, InvalidInput, "the model is of another family than the container asks for",
        "`model_requirements.model_family` is compared with the model's architecture and name.";

    TokenizerUnsupported = 150, InvalidInput, "the tokenizer is of a kind that is not supported",
        "GGUF files name their pre-tokenizer; a wrong guess would change every token, so an unknown one is refused.";
    TokenizerInvalid = 151, InvalidInput, "the tokenizer's tables are wrong",
        "Vocabulary, merges and special tokens must fit together: as many tokens as embedding rows, ids in range, no duplicates.";
    ChatTemplateInvalid = 152, InvalidInput, "the model's chat template cannot be evaluated",
        "The template is a Jinja program inside the model file. It failed, or ran longer than a template may.";
    ChatTemplateUnsupported = 153, InvalidInput, "the chat template treats the input in an unsupported way",
        "Templates are evaluated at build time around the place of the input. One that inspects, repeats or reorders the input cannot be.";
    PromptTooLong = 155, InvalidInput, "the prompt leaves no room for the input",
        "The prompt's tokens, the window and the tokens to generate must fit the context. Nothing is ever cut off silently.";

    BudgetExceeded = 180, MemoryBudget, "the task does not fit the RAM budget",
        "The plan states the peak of the whole process, and that peak is above the budget. `omex debug memory report` itemises it. A smaller context, a smaller quantization or more RAM would fit.";
    ContextTooLong = 181, InvalidInput, "the context is longer than the model supports",
        "The model was trained for a shorter context than the container asks for.";

    SlowPlan = 182, MemoryBudget, "every token will be slow",
        "What does not fit the RAM budget is read from storage for every token. More RAM, a smaller model or faster storage would help; the plan is built as asked.";

    OutOfMemory = 183, MemoryBudget, "there is not enough memory",
        "The process may not have as much memory as it needs: a memory cgroup, `ulimit -v`, `-d` or `-s` limit it, or the machine's memory is in use. Model files are mapped as a whole, which takes address space but no memory.";

    FileRead = 200, Io, "a file cannot be read",
        "The operating system refused to open or read the file. Only regular files are read.";
    FileWrite = 201, Io, "a file cannot be written",
        "The operating system refused to write. Results are written to a temporary file first and renamed, so nothing half written is left under the final name.";
    NoSpace = 202, Io, "the disk has not enough free space",
        "The packed model is written once and shared by all plans on that model. The free space is checked before it is written.";
    FileAccess = 203, Io, "the system refused a file",
        "The message says what was to be done with the file and what the operating system answered.";

    PlanInvalid = 220, Integrity, "the plan is damaged",
        "Every section of a plan carries a digest, and one does not match. Build the plan again.";
    PlanVersion = 221, Integrity, "the plan is of another version",
        "Plan format, packed format and numerics have versions of their own; none is converted silently. Build the plan again.";
    ModelDigest = 222, Integrity, "the model is not the one that was named",
        "The registry or the plan states a digest, and the file has another. It was replaced or damaged.";

    RemoteForbidden = 240, Policy, "the task needs the network, which is not allowed",
        "Nothing is fetched unless container and configuration both allow it.";
    Untrusted = 241, Policy, "the plan's code is not trusted",
        "A plan contains machine code. Only code built here or signed by a trusted key is run: `omex trust add KEY`.";

    Usage = 260, Usage, "the command line is wrong",
        "See --help.";

    InputUnusable = 280, InvalidInput, "an input cannot be processed",
        "Inputs are UTF-8 texts: files, folders of them, patterns, or standard input. Outputs are none of them.";
    NotFinite = 281, TaskFailed, "the model computes values that are no numbers",
        "A weight, an activation or a score became infinite or NaN. The model is damaged or was quantized badly: nothing that follows from such a value would mean anything.";
    BuildEnded = 282, TaskFailed, "the compiler was ended",
        "A command that needs a plan builds it in a process of its own, which somebody or the system ended. Linux does so with signal 9 where memory runs out.";
}

impl Code {
    pub fn number(self) -> u16 {
        self as u16
    }

    /// Reads `OMX0012`, in any case, with or without the letters and the zeros.
    pub fn parse(text: &str) -> Option<Code> {
        let text = text.trim();
        let digits = match text.get(..3) {
            Some(prefix) if prefix.eq_ignore_ascii_case("omx") => &text[3..],
            _ => text,
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u16 = digits.parse().ok()?;
        Code::ALL
            .iter()
            .copied()
            .find(|code| code.number() == number)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OMX{:04}", self.number())
    }
}

/// The story of a code, for `omexc explain OMX0012`. None if there is no such code.
pub fn explain(code: &str) -> Option<&'static str> {
    Code::parse(code).map(Code::story)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_read_back() {
        assert!(Code::ALL.is_sorted_by(|a, b| a.number() < b.number()));
        for &code in Code::ALL {
            assert_eq!(Code::parse(&code.to_string()), Some(code));
            assert!(
                !code.title().ends_with('.') && code.story().ends_with('.'),
                "{code}"
            );
        }
        for wrong in [
            "",
            "OMX",
            "OMX9999",
            "omx",
            "é12",
            "-1",
            "+1",
            "99999999999",
        ] {
            assert_eq!(explain(wrong), None, "{wrong}");
        }
        assert_eq!(Code::parse("omx12"), Some(Code::InvalidValue));
    }
}
