//! Fuzz targets. Each takes arbitrary bytes, and panics if a guarantee is violated.
//!
//! `fuzz/` runs the targets with generated inputs, and the tests below with committed ones.

#[cfg(feature = "docker")]
mod demux;
mod lines;
mod reader;
mod reopen;
#[cfg(feature = "docker")]
mod websocket;

#[cfg(feature = "docker")]
pub use demux::demux;
pub use lines::lines;
pub use reader::reader;
pub use reopen::reopen;
#[cfg(feature = "docker")]
pub use websocket::websocket;

/// The input of a target, parsed from the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The next byte; 0 after the end.
    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// The next two bytes, big-endian.
    fn short(&mut self) -> usize {
        usize::from(u16::from_be_bytes([self.byte(), self.byte()]))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// Runs a target over its committed inputs.
    fn replay(target: &str, run: impl Fn(&[u8])) {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let dir = dir.join(target);
        // The corpus is in the repository, and not in the published package.
        let files = fs::read_dir(&dir)
            .unwrap_or_else(|error| panic!("no corpus at {}: {error}", dir.display()));
        let mut names: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        names.sort();
        assert!(names.len() >= 5, "{} inputs: {names:?}", names.len());
        for name in names {
            // The test shows this line if the target panics.
            println!("{}", name.display());
            run(&fs::read(&name).unwrap());
        }
    }

    #[cfg(feature = "docker")]
    #[test]
    fn the_demultiplexer_passes_the_corpus() {
        replay("demux", demux);
    }

    #[cfg(feature = "docker")]
    #[test]
    fn the_parser_of_websockets_passes_the_corpus() {
        replay("websocket", websocket);
    }

    #[test]
    fn the_line_assembler_passes_the_corpus() {
        replay("lines", lines);
    }

    #[test]
    fn the_readers_pass_the_corpus() {
        replay("reader", reader);
    }

    #[test]
    fn reopening_passes_the_corpus() {
        let dir = crate::disk::image::scratch_dir();
        replay("reopen", |input| reopen(dir.path(), input));
    }
}
