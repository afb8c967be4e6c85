//! What a file is that is neither FlashPack nor safetensors, by its first and last bytes, and what to do about it.

use super::safetensors::{MAX_HEADER_BYTES, PREFIX_BYTES, claims};

/// Bytes of a file's start that [`recognise`] looks at.
pub const START_BYTES: usize = 512;
/// Characters of a text that the message shows.
const EXCERPT_CHARS: usize = 80;

const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const ZIP_ENTRY: &[u8] = b"PK\x03\x04";
/// Begins the record that ends every ZIP archive.
const ZIP_END: &[u8] = b"PK\x05\x06";
/// The number that `torch.save` pickled first until 1.6, without the pickle's own opcodes.
const TORCH_MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const PICKLE: u8 = 0x80;
const CONVERT: &str = "a file of torch.save: convert it with `flashpack convert`";
const SAFETENSORS: &str = "a safetensors file: convert it with `flashpack convert`";
const DOWNLOAD: &str = "probably a server's answer in place of the file: download it again";

/// Formats with a number of their own: where it stands, the number, what the file is.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"GGUF", "a GGUF file, which FlashPack does not read: take the model's safetensors instead"),
    (
        0,
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, which FlashPack does not read: take the model's safetensors instead",
    ),
    (0, b"\x93NUMPY", "a NumPy array: load it with numpy.load and save it with flashpack.save_file"),
    (0, b"\x1f\x8b", "compressed with gzip: decompress it first"),
    (0, b"\xfd7zXZ\0", "compressed with xz: decompress it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd: decompress it first"),
    (0, b"BZh", "compressed with bzip2: decompress it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
];

/// A format that is known, but not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What the file is and what to do, as the end of a sentence: "it is …".
    pub what: String,
    /// Who reads it.
    pub reader: Reader,
}

/// Who reads a file that is not FlashPack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// `torch.load`.
    Torch,
    /// Every load of this library.
    Safetensors,
    /// Neither.
    Nobody,
}

/// Recognises a file of `file_bytes` that starts with `start`, up to [`START_BYTES`], and ends in `end`.
#[must_use]
pub fn recognise(start: &[u8], end: &[u8], file_bytes: u64) -> Option<Foreign> {
    if claims(start, file_bytes) {
        return Some(Foreign { what: SAFETENSORS.to_owned(), reader: Reader::Safetensors });
    }
    let torch = torch_file(start, end);
    let reader = if torch == Some(CONVERT) { Reader::Torch } else { Reader::Nobody };
    let what = lfs_pointer(start)
        .or_else(|| torch.map(str::to_owned))
        .or_else(|| cut_safetensors(start, file_bytes))
        .or_else(|| signature(start))
        .or_else(|| text(start))
        .or_else(|| unwritten(end))?;
    Some(Foreign { what, reader })
}

fn lfs_pointer(start: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(start).ok().filter(|_| start.starts_with(LFS_POINTER))?;
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let whole = size.map(|bytes| format!(" to a file of {bytes} bytes")).unwrap_or_default();
    Some(format!("a Git LFS pointer{whole}: fetch that with `git lfs pull`"))
}

/// ZIP archives and pickles, among them what `torch.save` writes.
fn torch_file(start: &[u8], end: &[u8]) -> Option<&'static str> {
    let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    if start.starts_with(ZIP_ENTRY) {
        return Some(if !holds(end, ZIP_END) {
            "a ZIP archive (as torch.save writes them) without its end: download it again"
        } else if holds(start, b"/data.pkl") {
            CONVERT
        } else if holds(start, b".npy") {
            "a NumPy archive: load it with numpy.load and save it with flashpack.save_file"
        } else {
            "a ZIP archive: unpack it first"
        });
    }
    if start.first() == Some(&PICKLE) && matches!(start.get(1), Some(2..=5)) {
        let early = &start[..start.len().min(32)];
        return Some(if holds(early, TORCH_MAGIC) {
            CONVERT
        } else {
            "a Python pickle: load it in Python, if you trust it, and save its tensors with flashpack.save_file"
        });
    }
    None
}

fn cut_safetensors(start: &[u8], file_bytes: u64) -> Option<String> {
    let (prefix, json) = start.split_first_chunk::<PREFIX_BYTES>()?;
    let header = u64::from_le_bytes(*prefix);
    let promises = json.starts_with(b"{") && header <= MAX_HEADER_BYTES;
    promises.then(|| {
        let least = header + PREFIX_BYTES as u64;
        format!(
            "a truncated safetensors file: {file_bytes} bytes, but its header alone ends at {least}: download it again"
        )
    })
}

fn signature(start: &[u8]) -> Option<String> {
    let found = |(offset, bytes, _): &&(usize, &[u8], &str)| {
        start.get(*offset..).is_some_and(|rest| rest.starts_with(bytes))
    };
    SIGNATURES.iter().find(found).map(|(_, _, what)| (*what).to_owned())
}

/// Web pages, JSON and all other text.
fn text(start: &[u8]) -> Option<String> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let text = text.trim();
    if text.is_empty() || text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let excerpt: String = text.chars().take(EXCERPT_CHARS).collect();
    let lower = excerpt.to_ascii_lowercase();
    let begins = |tags: &[&str]| tags.iter().any(|tag| lower.starts_with(tag));
    let what = if begins(&["<!doctype html", "<html", "<head", "<body"]) {
        "an HTML page"
    } else if begins(&["<?xml"]) {
        "an XML document"
    } else if begins(&["{", "["]) {
        "JSON"
    } else {
        "text"
    };
    Some(format!("{what} that begins with {excerpt:?}, {DOWNLOAD}"))
}

/// A file that was given its length before its content.
fn unwritten(end: &[u8]) -> Option<String> {
    let zeros = !end.is_empty() && end.iter().all(|&byte| byte == 0);
    zeros.then(|| format!("unfinished: its last {} bytes are zeros: download it again", end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(start: &[u8]) -> String {
        recognise(start, start, start.len() as u64).map_or_else(String::new, |foreign| foreign.what)
    }

    #[test]
    fn wrong_files_are_recognised() {
        for (start, expected) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n"[..],
                "a Git LFS pointer to a file of 4976698672 bytes: fetch that with `git lfs pull`",
            ),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: fetch"),
            (
                b"\xef\xbb\xbf\n<!DOCTYPE html><title>404",
                "an HTML page that begins with \"<!DOCTYPE html><title>404\"",
            ),
            (b"<html lang=en>", "an HTML page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied", "an XML document"),
            (b"{\"error\": \"Repository not found\"}", "JSON that begins with"),
            (b"Entry not found", "text that begins with \"Entry not found\", probably a server's answer"),
            (b"GGUF\x03\0\0\0", "a GGUF file"),
            (b"\x1f\x8b\x08\0", "compressed with gzip"),
            (b"PK\x03\x04........model/data.pkl....PK\x05\x06", CONVERT),
            (
                b"PK\x03\x04........model/data.pkl....",
                "a ZIP archive (as torch.save writes them) without its end",
            ),
            (b"PK\x03\x04........a.npy....PK\x05\x06", "a NumPy archive"),
            (b"PK\x03\x04........a.txt....PK\x05\x06", "a ZIP archive: unpack"),
            (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", CONVERT),
            (b"\x80\x04\x95\x08\0\0\0\0\0\0\0}\x94.", "a Python pickle"),
            (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
            (b"\x93NUMPY\x01\0", "a NumPy array"),
            (
                b"\x28\x04\0\0\0\0\0\0{\"a\":",
                "a truncated safetensors file: 13 bytes, but its header alone ends at 1072",
            ),
            (b"\x02\0\0\0\0\0\0\0{}", "a safetensors file: convert"),
            (&[0; 100], "unfinished: its last 100 bytes are zeros"),
        ] {
            let found = what(start);
            assert!(found.starts_with(expected), "{}: {found:?}", start.escape_ascii());
        }
        let mut tar = [0_u8; START_BYTES];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(what(&tar).starts_with("a tar archive"));
    }

    #[test]
    fn a_character_that_the_start_cuts_is_no_damage() {
        assert!(what("Página no encontrada é".as_bytes().split_last().unwrap().1).starts_with("text"));
    }

    #[test]
    fn bytes_that_say_nothing_are_nothing() {
        for start in [&b""[..], b"\0\x01\x02", b"\x80", b"\x80\x09", b" \n", b"\xff\xfe<\0"] {
            assert_eq!(what(start), "", "{}", start.escape_ascii());
        }
    }

    #[test]
    fn only_what_torch_reads_is_torch() {
        let is_torch = |start: &[u8]| {
            recognise(start, start, 100).is_some_and(|foreign| foreign.reader == Reader::Torch)
        };
        assert!(is_torch(b"PK\x03\x04........model/data.pkl....PK\x05\x06"));
        assert!(is_torch(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."));
        assert!(!is_torch(b"PK\x03\x04........model/data.pkl...."));
        assert!(!is_torch(b"\x80\x04}\x94."));
        assert!(!is_torch(b"GGUF"));
    }
}
