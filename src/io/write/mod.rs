//! Writing: new files that take the place of others in one step.

mod atomic;
mod behind;
mod growing;
pub mod temporary;

pub use atomic::{AtomicFile, NewFile, flush_folder, refuse_irregular};
pub use growing::{Finished, Growing, NewObject};
