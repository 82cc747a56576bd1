//! Carries the texts of nodes to where they belong: files, standard output,
//! and nodes that come later.
//!
//! A join takes the texts of its sources one after the other. The text of the
//! source whose turn it is passes straight through; others wait in unnamed
//! files. Memory does not grow with the texts.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use omex_plan::NodeId;
use omex_plan::task::{NodeKind, Program};

use crate::error::RunError;
use crate::events::Sink;
use crate::os::file::{AtomicFile, unnamed};

/// Buffer of each file that is written.
pub const WRITE_BUFFER_BYTES: usize = 16 << 10;
/// Longest record of a spool; longer texts take several.
const RECORD_BYTES_MAX: usize = 4096;

/// Texts that wait, item by item: records of a length (u32) and bytes; an
/// empty record ends an item.
struct Spool(BufWriter<File>);

impl Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(RECORD_BYTES_MAX) {
            self.0.write_all(&(part.len() as u32).to_le_bytes())?;
            self.0.write_all(part)?;
        }
        Ok(())
    }

    fn end_item(&mut self) -> io::Result<()> {
        self.0.write_all(&[0; 4])
    }

    fn read(self) -> io::Result<SpoolReader> {
        let mut file = self.0.into_inner().map_err(|e| e.into_error())?;
        file.rewind()?;
        Ok(SpoolReader(file))
    }
}

/// The items of a spool in order.
pub(super) struct SpoolReader(File);

impl SpoolReader {
    /// Reads the next record of the current item to the start of `bytes`, and
    /// returns its length; 0 at the item's end.
    ///
    /// Errors: a record that is longer than `bytes`.
    fn record(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut len = [0; 4];
        self.0.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        let bytes = bytes.get_mut(..len).ok_or(io::ErrorKind::StorageFull)?;
        self.0.read_exact(bytes)?;
        Ok(len)
    }

    /// Reads the next item to the start of `bytes`, and returns its length;
    /// `None` when none is left.
    ///
    /// Errors: an item that is longer than `bytes`.
    pub(super) fn next(&mut self, bytes: &mut [u8]) -> io::Result<Option<usize>> {
        let position = self.0.stream_position()?;
        if position == self.0.metadata()?.len() {
            return Ok(None);
        }
        let mut end = 0;
        loop {
            match self.record(&mut bytes[end..]) {
                Ok(0) => return Ok(Some(end)),
                Ok(len) => end += len,
                Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                    let most = bytes.len();
                    let what = format!("a text of more than {most} bytes does not fit the context");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
                Err(e) => return Err(e),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    StandardOutput,
    Merge(NodeId),
    /// Takes nothing before it runs, then item by item.
    Infer(NodeId),
}

struct Source {
    node: NodeId,
    spool: Option<Spool>,
    complete: bool,
}

struct Join {
    target: Target,
    sources: Vec<Source>,
    turn: usize,
}

struct Output {
    node: NodeId,
    path: PathBuf,
    file: BufWriter<AtomicFile>,
}

pub(super) struct Flow<'a> {
    joins: Vec<Join>,
    outputs: Vec<Output>,
    waiting_folder: &'a Path,
    sink: &'a mut dyn Sink,
}

impl<'a> Flow<'a> {
    /// Creates the outputs, under temporary names, in `output_folder`.
    ///
    /// Errors: an output cannot be created.
    pub(super) fn new(
        program: &Program,
        output_folder: &Path,
        waiting_folder: &'a Path,
        sink: &'a mut dyn Sink,
    ) -> Result<Flow<'a>, RunError> {
        let source = |node: NodeId| Source {
            node,
            spool: None,
            complete: false,
        };
        let mut joins = Vec::new();
        let mut outputs = Vec::new();
        let mut printed = Vec::new();
        for (index, node) in program.nodes.iter().enumerate() {
            let id = NodeId::from(index);
            let target = match &node.kind {
                NodeKind::Parse { .. } => None,
                NodeKind::Infer { .. } => Some(Target::Infer(id)),
                NodeKind::Merge { outputs: names } => {
                    for name in names {
                        let path = output_folder.join(name);
                        // The container chose the name.
                        let file = AtomicFile::replace(&path)
                            .map_err(RunError::io("create the output", &path))?;
                        outputs.push(Output {
                            node: id,
                            path,
                            file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file),
                        });
                    }
                    Some(Target::Merge(id))
                }
            };
            if let Some(target) = target {
                joins.push(Join {
                    target,
                    sources: node.depends_on.iter().copied().map(source).collect(),
                    turn: 0,
                });
            }
            let consumed = program.nodes.iter().any(|n| n.depends_on.contains(&id));
            let written = outputs.iter().any(|output| output.node == id);
            if !consumed && !written {
                printed.push(source(id));
            }
        }
        joins.push(Join {
            target: Target::StandardOutput,
            sources: printed,
            turn: 0,
        });
        Ok(Flow {
            joins,
            outputs,
            waiting_folder,
            sink,
        })
    }

    pub(super) fn sink(&mut self) -> &mut dyn Sink {
        self.sink
    }

    /// Whether anything but inferences takes this node's text.
    pub(super) fn is_text_wanted(&self, node: NodeId) -> bool {
        self.joins.iter().any(|join| {
            !matches!(join.target, Target::Infer(_)) && join.sources.iter().any(|s| s.node == node)
        })
    }

    /// The next bytes of a node's text.
    pub(super) fn write(&mut self, node: NodeId, bytes: &[u8]) -> Result<(), RunError> {
        for output in self.outputs.iter_mut().filter(|o| o.node == node) {
            output
                .file
                .write_all(bytes)
                .map_err(RunError::io("write the output", &output.path))?;
        }
        for index in 0..self.joins.len() {
            let join = &mut self.joins[index];
            let Some(at) = join.sources.iter().position(|s| s.node == node) else {
                continue;
            };
            if at == join.turn && !matches!(join.target, Target::Infer(_)) {
                self.forward(index, bytes)?;
            } else {
                self.wait(index, at, |spool| spool.write(bytes))?;
            }
        }
        Ok(())
    }

    /// Hands text to a join's target.
    fn forward(&mut self, join: usize, bytes: &[u8]) -> Result<(), RunError> {
        match self.joins[join].target {
            Target::StandardOutput => self.print(bytes),
            Target::Merge(node) => self.write(node, bytes),
            Target::Infer(_) => unreachable!("inferences take whole items"),
        }
    }

    fn print(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.sink.text(bytes).map_err(RunError::io(
            "write the result",
            Path::new("standard output"),
        ))
    }

    fn wait(
        &mut self,
        join: usize,
        source: usize,
        write: impl FnOnce(&mut Spool) -> io::Result<()>,
    ) -> Result<(), RunError> {
        let folder = self.waiting_folder;
        let source = &mut self.joins[join].sources[source];
        let put = || {
            if source.spool.is_none() {
                let file = unnamed(folder)?;
                let file = BufWriter::with_capacity(WRITE_BUFFER_BYTES, file);
                source.spool = Some(Spool(file));
            }
            write(source.spool.as_mut().expect("made above"))
        };
        put().map_err(RunError::io("keep a text for a later node", folder))
    }

    /// An item (a window's result) of a node's text is complete.
    pub(super) fn end_item(&mut self, node: NodeId) -> Result<(), RunError> {
        for index in 0..self.joins.len() {
            let join = &self.joins[index];
            let at = join.sources.iter().position(|s| s.node == node);
            if let (Target::Infer(_), Some(at)) = (join.target, at) {
                self.wait(index, at, Spool::end_item)?;
            }
        }
        Ok(())
    }

    /// A node's text is complete: whoever waits for its turn goes on.
    pub(super) fn complete(&mut self, node: NodeId) -> Result<(), RunError> {
        for index in 0..self.joins.len() {
            let join = &mut self.joins[index];
            let Some(at) = join.sources.iter().position(|s| s.node == node) else {
                continue;
            };
            join.sources[at].complete = true;
            if matches!(join.target, Target::Infer(_)) {
                continue;
            }
            while let Some(source) = self.joins[index].sources.get(self.joins[index].turn) {
                if !source.complete {
                    break;
                }
                self.joins[index].turn += 1;
                self.drain(index)?;
            }
            self.complete_merge(index)?;
        }
        Ok(())
    }

    /// Hands over what waits of the source whose turn it has become.
    fn drain(&mut self, join: usize) -> Result<(), RunError> {
        let turn = self.joins[join].turn;
        let Some(source) = self.joins[join].sources.get_mut(turn) else {
            return Ok(());
        };
        let Some(spool) = source.spool.take() else {
            return Ok(());
        };
        let folder = self.waiting_folder;
        let failed = || RunError::io("read a text back", folder);
        let mut reader = spool.read().map_err(failed())?;
        let end = reader.0.metadata().map_err(failed())?.len();
        let mut bytes = [0; RECORD_BYTES_MAX];
        while reader.0.stream_position().map_err(failed())? < end {
            let len = reader.record(&mut bytes).map_err(failed())?;
            self.forward(join, &bytes[..len])?;
        }
        Ok(())
    }

    /// Finishes a merge whose sources are complete.
    fn complete_merge(&mut self, join: usize) -> Result<(), RunError> {
        let Join {
            target,
            sources,
            turn,
        } = &self.joins[join];
        let Target::Merge(node) = *target else {
            return Ok(());
        };
        if *turn < sources.len() {
            return Ok(());
        }
        let mut index = 0;
        while index < self.outputs.len() {
            if self.outputs[index].node != node {
                index += 1;
                continue;
            }
            let Output { path, file, .. } = self.outputs.remove(index);
            let file = file.into_inner().map_err(|e| e.into_error());
            file.and_then(AtomicFile::finish)
                .map_err(RunError::io("write the output", &path))?;
        }
        self.end_item(node)?;
        self.complete(node)
    }

    /// The items that wait for an inference, source by source.
    pub(super) fn items(
        &mut self,
        infer: NodeId,
        source: NodeId,
    ) -> Result<Option<SpoolReader>, RunError> {
        let folder = self.waiting_folder;
        let joins = self.joins.iter_mut();
        let spool = joins
            .filter(|join| join.target == Target::Infer(infer))
            .flat_map(|join| &mut join.sources)
            .find(|s| s.node == source)
            .and_then(|s| s.spool.take());
        spool
            .map(|spool| {
                spool
                    .read()
                    .map_err(RunError::io("read a text back", folder))
            })
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Collector;
    use omex_plan::prompt::PromptTemplate;
    use omex_plan::task::{Node, Sampling};

    fn program(nodes: &[(&str, &[u32])]) -> Program {
        let node = |&(id, depends_on): &(&str, &[u32])| Node {
            id: id.to_owned(),
            depends_on: depends_on.iter().map(|&d| NodeId(d)).collect(),
            kind: match id.split_once('>') {
                Some((_, file)) => NodeKind::Merge {
                    outputs: vec![file.to_owned()],
                },
                None if id.starts_with("merge") => NodeKind::Merge { outputs: vec![] },
                None => NodeKind::Infer {
                    prompt: PromptTemplate::default(),
                    tokens_max: 1,
                    sampling: Sampling::GREEDY,
                    stop: vec![],
                },
            },
        };
        Program {
            task_id: "t".to_owned(),
            inputs: vec![],
            nodes: nodes.iter().map(node).collect(),
        }
    }

    /// Runs inferences that write their own ids twice; returns what is printed.
    fn run(nodes: &[(&str, &[u32])], folder: &Path) -> String {
        let program = program(nodes);
        let mut sink = Collector::default();
        let mut flow = Flow::new(&program, folder, folder, &mut sink).unwrap();
        for (index, node) in program.nodes.iter().enumerate() {
            let id = NodeId::from(index);
            if let NodeKind::Infer { .. } = node.kind {
                for window in 0..2 {
                    let text = format!("{}{window} ", node.id);
                    flow.write(id, text.as_bytes()).unwrap();
                    flow.end_item(id).unwrap();
                }
                flow.complete(id).unwrap();
            }
        }
        String::from_utf8(sink.text).unwrap()
    }

    #[test]
    fn texts_arrive_in_the_order_of_their_joins() {
        let folder = std::env::temp_dir().join(format!("omex-flow-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(run(&[("a", &[]), ("merge", &[0])], &folder), "a0 a1 ");
        assert_eq!(run(&[("a", &[]), ("b", &[])], &folder), "a0 a1 b0 b1 ");
        let backwards = [("a", &[][..]), ("b", &[]), ("merge", &[1, 0])];
        assert_eq!(run(&backwards, &folder), "b0 b1 a0 a1 ");
        let nested = [
            ("a", &[][..]),
            ("b", &[]),
            ("c", &[]),
            ("merge1", &[0, 2]),
            ("merge2", &[1, 3]),
        ];
        assert_eq!(run(&nested, &folder), "b0 b1 a0 a1 c0 c1 ");
        let files = [("a", &[][..]), ("m>out.txt", &[0]), ("merge", &[1, 0])];
        assert_eq!(run(&files, &folder), "a0 a1 a0 a1 ");
        assert_eq!(std::fs::read(folder.join("out.txt")).unwrap(), b"a0 a1 ");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn inferences_take_items() {
        let folder = std::env::temp_dir().join(format!("omex-items-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = program(&[("a", &[]), ("merge", &[0]), ("b", &[0, 1])]);
        let mut sink = Collector::default();
        let mut flow = Flow::new(&program, &folder, &folder, &mut sink).unwrap();
        for text in ["x", "", "yz"] {
            flow.write(NodeId(0), text.as_bytes()).unwrap();
            flow.end_item(NodeId(0)).unwrap();
        }
        flow.complete(NodeId(0)).unwrap();
        let mut items = Vec::new();
        for source in [0, 1] {
            let mut reader = flow.items(NodeId(2), NodeId(source)).unwrap().unwrap();
            let mut bytes = [0; 10];
            while let Some(len) = reader.next(&mut bytes).unwrap() {
                items.push(String::from_utf8(bytes[..len].to_vec()).unwrap());
            }
        }
        assert_eq!(items, ["x", "", "yz", "xyz"]);
        drop(flow);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
