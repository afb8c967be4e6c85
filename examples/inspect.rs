//! Prints what is in a FlashPack file, loads it, and shows the first bytes of each tensor.
//!
//!     cargo run --example inspect -- model.flashpack

use std::{env, error::Error, path::Path};

use flashpack::{
    Progress, Reader,
    load::{Options, load},
    plan::{Ignore, Selection},
};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args_os().nth(1).ok_or("usage: inspect FILE")?;
    let path = Path::new(&path);

    let reader = Reader::open(path)?;
    let index = reader.index();
    for block in index.blocks() {
        println!("macroblock of {} {} at byte {}", block.elems(), block.dtype(), block.offset());
    }
    for (key, value) in index.metadata() {
        println!("metadata {key} = {value}");
    }

    let everything = Ignore::default();
    let options = Options { eager: Some(true), ..Options::default() };
    let mut loaded = load(path, Selection::Except(&everything), options, Progress::SILENT)?;
    for number in 0..loaded.names.len() {
        let bytes = loaded.to_bytes(number);
        let (name, view) = (&loaded.names[number], &loaded.views[number]);
        println!("{name}: {} {:?}, begins {:02x?}", view.dtype, view.shape, &bytes[..bytes.len().min(4)]);
    }
    Ok(())
}
