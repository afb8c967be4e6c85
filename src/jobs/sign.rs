//! Signing files with Ed25519, and telling who did.
//!
//! What is signed is the BLAKE3 digest of the index ([`signature::message`]), which covers the digests of the payload:
//! whoever trusts the key and has compared every digest ([`verify`](mod@crate::verify)) has the signer's tensors.

use std::{
    fs::{self, File},
    io::Read as _,
    ops::Range,
    path::Path,
};

use ed25519_dalek::{
    Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::{
    environment::Environment,
    error::{At, Error, ErrorKind, IoContext, Result, zeroed},
    format::{
        Checksums, Encoding, Index, Seal, Signature, TRAILER_BYTES, footer,
        signature::{self, hex},
    },
    io::{
        self, FileSource, Files, Input, Source,
        read::{ChunkReader, span},
        write::{AtomicFile, refuse_changed},
    },
    model::reader::Reader,
    plan::{Readers, every_digest},
    progress::Progress,
    remote,
    stats::Clock,
};

/// More than any file with one key has.
const MAX_KEY_BYTES: usize = 16 << 10;

/// Bytes of frames that are copied at a time.
const COPIED_BYTES: u64 = 1 << 20;

/// What signs. Its bytes are wiped when it is dropped.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Reads a key as `openssl genpkey -algorithm ed25519` writes it: PKCS#8 in PEM, not encrypted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::Argument`] for a file with anything else.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = read_key(path)?;
        SigningKey::from_pkcs8_pem(text(&pem)).map(Self).map_err(|_| {
            let made = "openssl genpkey -algorithm ed25519";
            Error::argument(format!("holds no Ed25519 private key as `{made}` writes one")).at(path)
        })
    }

    /// The key that its signatures are checked with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The signature of a file whose index has the BLAKE3 digest `root`.
    #[must_use]
    pub fn sign(&self, root: &[u8; 32]) -> Signature {
        let bytes = self.0.sign(&signature::message(root)).to_bytes();
        Signature { public_key: self.0.verifying_key().to_bytes(), bytes }
    }
}

/// What signatures are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads a key as `openssl pkey -pubout` writes it: SubjectPublicKeyInfo in PEM.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]; [`ErrorKind::Argument`] for a file with anything else.
    pub fn read(path: &Path) -> Result<Self> {
        let pem = read_key(path)?;
        VerifyingKey::from_public_key_pem(text(&pem)).map(Self).map_err(|_| {
            let made = "openssl pkey -pubout";
            Error::argument(format!("holds no Ed25519 public key as `{made}` writes one")).at(path)
        })
    }

    /// The SHA-256 of the key's DER, as `openssl pkey -pubin -in KEY -outform DER | sha256sum` gives it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let der = self.0.to_public_key_der().expect("32 bytes always have a DER");
        format!("sha256:{}", hex(&Sha256::digest(der.as_bytes())))
    }

    /// Whether the holder of this key signed a file whose index has the BLAKE3 digest `root`.
    fn has_signed(&self, root: &[u8; 32], bytes: &[u8; 64]) -> bool {
        self.0.verify_strict(&signature::message(root), &bytes.into()).is_ok()
    }
}

/// Signs the file in place, replacing any existing signature.
/// The payload is copied a chunk of digests at a time, and compared with those: what is damaged is not signed.
///
/// # Errors
/// Those of [`Reader::open`] and of writing; [`ErrorKind::Unsupported`] for a file without BLAKE3 checksums;
/// [`ErrorKind::Checksum`] for a damaged one; [`ErrorKind::Io`] if it is changed or replaced meanwhile. The file is then
/// what it was, but for the two cases of [`AtomicFile::commit`].
pub fn sign(path: &Path, key: &PrivateKey, progress: Progress<'_>) -> Result<PublicKey> {
    remote::refuse(path, "cannot be signed where it lies: sign a file, and copy that to the store")?;
    let before = fs::metadata(path).during("cannot open", path)?;
    let reader = Reader::open(path)?;
    let index = reader.index();
    let (Some(checksums), Some(root)) = (index.checksums(), index.seal().root) else {
        let what = "only files with BLAKE3 checksums can be signed: make one by `flashpack convert --checksum \
                    blake3` or pack_to_file(…, checksum=\"blake3\")";
        return Err(Error::new(ErrorKind::Unsupported, what).at(path));
    };
    let footer = footer::signed(reader.footer(), &key.sign(&root)).at(path)?;
    let behind = (footer.len() + TRAILER_BYTES) as u64;
    let stored = index.encoding().map_or(index.payload_bytes(), Encoding::stored_bytes);
    let mut file = AtomicFile::create(path, stored + behind)?;
    progress.start(index.payload_bytes());
    if index.encoding().is_some() {
        copy_frames(reader.source(), index, stored, &mut file, progress)?;
    } else {
        copy_payload(reader.source(), index, checksums, &mut file, progress)?;
    }
    file.write(footer.as_bytes())?;
    file.write(&footer::trailer(footer.as_bytes()))?;
    drop(reader); // some systems replace no file that is open
    file.commit_if(|| refuse_changed(path, &before))?;
    Ok(key.public())
}

fn copy_payload(
    source: &impl Source,
    index: &Index,
    checksums: &Checksums,
    file: &mut AtomicFile,
    progress: Progress<'_>,
) -> Result<()> {
    let clock = Clock::default();
    let chunks = ChunkReader { source, index, progress, clock: &clock };
    let mut buffer = zeroed(checksums.chunk_bytes().min(index.payload_bytes())).at(source.path())?;
    let mut lap = clock.start();
    for run in &every_digest(index) {
        let Range { start, end } = span(run);
        let bytes = usize::try_from(end - start).expect("chunks have at most 64 MiB");
        chunks.read_run(run, &mut buffer[..bytes], &mut lap)?;
        file.write(&buffer[..bytes])?;
    }
    Ok(())
}

/// Compares what the frames hold with its digests, and copies them as they are, `stored` bytes. Who changes the file in
/// between is found out before it is replaced.
fn copy_frames(
    source: &FileSource,
    index: &Index,
    stored: u64,
    file: &mut AtomicFile,
    progress: Progress<'_>,
) -> Result<()> {
    let files = Files::new(source.path(), vec![Input::Buffered(source.clone())], index);
    let clock = Clock::default();
    let chunks = ChunkReader { source: &files, index, progress, clock: &clock };
    let threads = Environment::read()?.read_threads.get();
    io::read::read(&chunks, &every_digest(index), Vec::new(), Readers::fixed(threads))?;
    let mut buffer = zeroed(stored.min(COPIED_BYTES)).at(source.path())?;
    let mut position = 0;
    while position < stored {
        let step = COPIED_BYTES.min(stored - position);
        let piece = &mut buffer[..usize::try_from(step).expect("at most COPIED_BYTES")];
        source.read_exact_at(piece, position)?;
        file.write(piece)?;
        position += step;
    }
    Ok(())
}

/// Who signed all of `files`, each with its seal: none, if they are not all signed, or by several.
///
/// # Errors
/// [`ErrorKind::Signature`] for a signature that does not hold, and, if there is a `key`, for a file that is not
/// signed, is signed by another, or, of several, is of no save in several files or of another one than the first:
/// the list of them is not signed.
pub(crate) fn check(files: &Files, seals: &[Seal], key: Option<&PublicKey>) -> Result<Option<PublicKey>> {
    let signer = |(seal, file): (&Seal, &Path)| check_one(seal, key).at(file);
    let paths: Vec<_> = files.iter().map(|(file, _)| file.path()).collect();
    let signers = seals.iter().zip(paths.iter().copied()).map(signer).collect::<Result<Vec<_>>>()?;
    let is_strange = |seal: &Seal| seal.set.is_none() || seal.set != seals[0].set;
    let strange = seals.iter().position(is_strange).filter(|_| seals.len() > 1);
    if let (Some(_), Some(strange)) = (key, strange) {
        let what = match (&seals[strange].set, &seals[0].set) {
            (Some(set), Some(first)) => {
                format!(
                    "is signed, but as part of another save than {}: {set}, not {first}",
                    paths[0].display()
                )
            }
            _ => "is signed, but as a whole model, not as part of several files".to_owned(),
        };
        return Err(Error::new(ErrorKind::Signature, what).at(paths[strange]));
    }
    let first = signers.first().copied().flatten();
    Ok(first.filter(|_| signers.iter().all(|signer| *signer == first)))
}

fn check_one(seal: &Seal, key: Option<&PublicKey>) -> Result<Option<PublicKey>> {
    let fail = |what: String| Err(Error::new(ErrorKind::Signature, what));
    let Some(signature) = &seal.signature else {
        return key.map_or(Ok(None), |_| fail("is not signed".to_owned()));
    };
    let Ok(signer) = VerifyingKey::from_bytes(&signature.public_key).map(PublicKey) else {
        return fail("has a signature, but what stands there as its public key is none".to_owned());
    };
    let Some(root) = &seal.root else {
        return fail("has a signature, but no BLAKE3 checksums that it could be of".to_owned());
    };
    match key {
        Some(key) if *key != signer => {
            fail(format!("is signed by the key {}, not by {}", signer.fingerprint(), key.fingerprint()))
        }
        _ if !signer.has_signed(root, &signature.bytes) => fail(format!(
            "has a signature that does not hold: it is not what {} signed",
            signer.fingerprint()
        )),
        _ => Ok(Some(signer)),
    }
}

/// The file's bytes, wiped when they are dropped. It may be a pipe.
fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    // As large as it will get: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_BYTES + 1));
    let file = File::open(path).during("cannot open", path)?;
    file.take(MAX_KEY_BYTES as u64).read_to_end(&mut bytes).during("cannot read", path)?;
    Ok(bytes)
}

/// What is not UTF-8 is no PEM either.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}
