//! Frames: what is none is refused; any bytes come back from theirs; of a file whose frames are damaged, whatever its footer
//! says, a load is an error or gives as many bytes as the footer says.
#![no_main]

use std::path::Path;

use flashpack::{
    ErrorKind, Progress, Reader,
    codec::{Codec, Element, Level},
    format::{Encoding, footer},
    io::{Files, Input, RemoteFile, Source as _},
    remote::{Object, Traffic},
    verify::verify_source,
};
use libfuzzer_sys::fuzz_target;

const ELEMENTS: [Option<Element>; 4] = [None, Some(Element::One), Some(Element::Two), Some(Element::Four)];

/// Of a footer.
const BEGINNING: &[u8] = b"{\"format";

fuzz_target!(|data: &[u8]| {
    let Some((&[how, low, high], bytes)) = data.split_first_chunk::<3>() else {
        return;
    };
    let length = usize::from(u16::from_le_bytes([low, high]));
    match how % 4 {
        0 => decode(how, length, bytes),
        1 => round_trip(how, bytes),
        2 => table(how, length, bytes),
        _ => file(bytes),
    }
});

fn decode(how: u8, length: usize, frame: &[u8]) {
    let (codec, _) = Codec::NAMES[usize::from(how / 4) % Codec::NAMES.len()];
    let mut chunk = vec![0; length];
    if codec.decode(frame, &mut chunk).is_ok() {
        let mut again = vec![1; length];
        codec.decode(&codec.encode(&chunk), &mut again).expect("a frame that was just made");
        assert_eq!(chunk, again);
    }
}

fn round_trip(how: u8, chunk: &[u8]) {
    let element = ELEMENTS[usize::from(how / 4) % ELEMENTS.len()];
    for level in [Level::Fast, Level::Small] {
        let (codec, frame) = level.encode(element, chunk);
        let mut back = vec![0; chunk.len()];
        codec.decode(&frame, &mut back).expect("a frame that was just made");
        assert!(back == chunk && frame.len() <= chunk.len());
    }
}

/// Lengths of frames: those that are accepted fit their chunks, one behind the other.
fn table(how: u8, chunks: usize, lengths: &[u8]) {
    let chunk_bytes = 1_u64 << (how / 4 % 32);
    let codec = |byte: u8| Codec::NAMES[usize::from(byte) % Codec::NAMES.len()].0;
    let length = |four: &[u8; 4]| (codec(four[0]), u64::from(u32::from_le_bytes(*four) >> 8));
    let payload = chunk_bytes.saturating_mul(chunks as u64);
    if let Ok(encoding) = Encoding::new(chunk_bytes, payload, lengths.as_chunks::<4>().0.iter().map(length)) {
        let mut end = (0, 0);
        for frame in encoding.frames(&(0..payload)) {
            assert_eq!((frame.chunk.start, frame.stored.start), end);
            assert!(frame.stored.end - frame.stored.start <= frame.chunk.end - frame.chunk.start);
            end = (frame.chunk.end, frame.stored.end);
        }
        assert_eq!(end, (payload, encoding.stored_bytes()));
    }
}

#[derive(Debug)]
struct Bytes(Vec<u8>);

impl Object for Bytes {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> flashpack::Result<()> {
        let mut at = usize::try_from(offset).expect("within the bytes");
        for buffer in buffers {
            buffer.copy_from_slice(&self.0[at..at + buffer.len()]);
            at += buffer.len();
        }
        Ok(())
    }

    fn distrust(&self, _: u64, _: u64) {}

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// A file of these bytes, which are frames and a footer, and a trailer that fits.
fn file(bytes: &[u8]) {
    let cut = bytes.len() - bytes.len() / 3;
    let begins = bytes.windows(BEGINNING.len()).position(|window| window == BEGINNING);
    let (frames, json) = bytes.split_at(begins.unwrap_or(cut));
    let whole = [frames, json, &footer::trailer(json)].concat();
    let object = RemoteFile::new(Path::new("s3://fuzz/file"), std::sync::Arc::new(Bytes(whole)));
    let Ok(reader) = Reader::new(object) else {
        return;
    };
    let (object, index, _) = reader.into_parts();
    // What is read below is held in memory whole.
    if index.payload_bytes() > 1 << 24 {
        return;
    }
    let files = Files::new(Path::new("file"), vec![Input::Remote(object)], &index);
    let mut payload = vec![0; usize::try_from(index.payload_bytes()).expect("just looked at")];
    match files.read_exact_at(&mut payload, 0) {
        Ok(()) => {}
        Err(error) => assert!(matches!(error.kind(), ErrorKind::Checksum | ErrorKind::Io), "{error}"),
    }
    if index.encoding().is_some() {
        let _ = verify_source(&files, &index, Progress::SILENT);
    }
}
