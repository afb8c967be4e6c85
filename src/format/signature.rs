//! A file's signature: the footer's claim of who vouches for its tensors. Whether it holds is for `sign` to say.

use std::fmt::Write as _;

use serde::Serialize;

/// What it is called in a footer.
pub(super) const KEY: &str = "signature";
/// The name of the one algorithm there is, Ed25519 of RFC 8032.
pub(super) const ALGORITHM: &str = "ed25519";
/// Footer metadata that tells the shards of one save from those of another.
pub const SET_KEY: &str = "flashpack_set";
/// What is signed begins with this: no signature of anything else, by the same key, is one of a file.
const DOMAIN: &[u8] = b"flashpack signature v1\n";

/// An Ed25519 signature, and the public key that it is said to be by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The key.
    pub public_key: [u8; 32],
    /// The signature of [`message`].
    pub bytes: [u8; 64],
}

impl Signature {
    /// What a footer says of it.
    pub(super) fn rendered(&self) -> RenderedSignature {
        let (public_key, signature) = (hex(&self.public_key), hex(&self.bytes));
        RenderedSignature { algorithm: ALGORITHM, public_key, signature }
    }
}

#[derive(Serialize)]
pub(super) struct RenderedSignature {
    algorithm: &'static str,
    public_key: String,
    signature: String,
}

/// What is signed of a file whose index has the BLAKE3 digest `root`.
#[must_use]
pub fn message(root: &[u8; 32]) -> Vec<u8> {
    [DOMAIN, root].concat()
}

/// What a file's signature has to hold for, and the signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The digest of the index, if that is one by BLAKE3.
    pub root: Option<[u8; 32]>,
    /// The signature, if the file has one in an algorithm this library knows.
    pub signature: Option<Signature>,
    /// What the file has in common with the other shards of its save; the root covers it.
    pub set: Option<String>,
}

/// `bytes` in hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("strings take everything");
        digits
    })
}

/// The `N` bytes that `digits` spell.
pub(super) fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let mut bytes = [0; N];
    if pairs.len() != N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_lead_back_to_their_bytes_and_others_to_none() {
        let bytes: [u8; 32] = std::array::from_fn(|at| u8::try_from(at * 8).unwrap());
        let digits = hex(&bytes);
        assert_eq!(from_hex(&digits), Some(bytes));
        assert_eq!(from_hex(&digits.to_uppercase()), Some(bytes));
        for wrong in ["", &digits[1..], &digits[2..], &format!("{digits}00"), &format!("+{}", &digits[1..])] {
            assert_eq!(from_hex::<32>(wrong), None, "{wrong}");
        }
        assert_eq!(from_hex::<32>(&format!("\u{e9}{}", &digits[2..])), None);
    }
}
