//! Keeps the input of the moment in a file, for what cannot be caught: a stack that overflows, memory that is used
//! up, a reader that never comes back.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Any input takes less than a millisecond; the machine may be busy with something else.
const STUCK_SECONDS: u32 = 120;

/// The file is removed when this is dropped.
pub struct Watch {
    path: PathBuf,
    file: File,
    length: Cell<usize>,
    inputs: Arc<AtomicU64>,
}

impl Watch {
    pub fn start(path: PathBuf) -> Self {
        let file = File::create(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        let inputs = Arc::default();
        let (seen, shown) = (Arc::downgrade(&inputs), path.display().to_string());
        std::thread::spawn(move || look(&seen, &shown));
        let length = Cell::new(0);
        Self {
            path,
            file,
            length,
            inputs,
        }
    }

    /// The next input.
    pub fn see(&self, input: &[u8]) {
        self.inputs.fetch_add(1, Ordering::Relaxed);
        let mut written = self.file.write_all_at(input, 0);
        if input.len() < self.length.replace(input.len()) {
            written = written.and_then(|()| self.file.set_len(input.len() as u64));
        }
        written.expect("room for the input");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn look(seen: &Weak<AtomicU64>, path: &str) {
    let (mut before, mut unchanged) = (0, 0);
    while let Some(inputs) = seen.upgrade() {
        let now = inputs.load(Ordering::Relaxed);
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
        if unchanged > STUCK_SECONDS {
            eprintln!("the reader does not come back from the input in {path}");
            std::process::abort();
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
