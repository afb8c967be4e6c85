//! Codecs: every bit of a chunk comes back, and no bytes that are no frame do harm.

use flashpack::codec::{Codec, Element, Level, MAX_RATIO, Malformed};
use proptest::prelude::*;

fn codecs() -> impl Iterator<Item = Codec> {
    Codec::NAMES.into_iter().map(|(codec, _)| codec)
}

fn returns(chunk: &[u8]) {
    for codec in codecs() {
        let frame = codec.encode(chunk);
        let mut back = vec![0xAA; chunk.len()];
        assert_eq!(codec.decode(&frame, &mut back), Ok(()), "{codec:?}");
        assert!(back == chunk, "{codec:?} of {} bytes", chunk.len());
    }
    for (level, element) in
        [(Level::Fast, Element::One), (Level::Small, Element::Two), (Level::Fast, Element::Four)]
    {
        let (codec, frame) = level.encode(Some(element), chunk);
        let mut back = vec![0xAA; chunk.len()];
        assert_eq!(codec.decode(&frame, &mut back), Ok(()));
        assert!(
            back == chunk
                && frame.len() <= chunk.len()
                && frame.len() as u64 * MAX_RATIO >= chunk.len() as u64
        );
    }
}

/// Elements as trained weights are: most of a few exponents, of any sign and mantissa, some of any bits at all.
fn weights() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![30 => (0x3b80_u16..0x3d7f, any::<bool>()).prop_map(|(word, minus)| word | u16::from(minus) << 15),
                           1 => any::<u16>()];
    prop::collection::vec(word, 0..3000)
        .prop_map(|words| words.into_iter().flat_map(u16::to_le_bytes).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_come_back(chunk in prop::collection::vec(any::<u8>(), 0..9000)) {
        returns(&chunk);
    }

    #[test]
    fn weights_come_back(mut chunk in weights(), odd in prop::option::of(any::<u8>())) {
        chunk.extend(odd);
        returns(&chunk);
    }

    #[test]
    fn what_is_no_frame_is_refused_or_gives_any_bytes(
        chunk in weights(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        for codec in codecs() {
            let mut frame = codec.encode(&chunk);
            let mut back = vec![0; chunk.len()];
            let longer = [&*frame, &[byte]].concat();
            prop_assert_eq!(codec.decode(&longer, &mut back), Err(Malformed));
            if frame.is_empty() {
                continue;
            }
            let cut = cut.index(frame.len());
            prop_assert_eq!(codec.decode(&frame[..cut], &mut back), Err(Malformed));
            let at = at.index(frame.len());
            frame[at] ^= byte;
            let _ = codec.decode(&frame, &mut back);
        }
    }

    #[test]
    fn arbitrary_frames_do_no_harm(frame in prop::collection::vec(any::<u8>(), 0..3000), bytes in 0_usize..6000) {
        for codec in codecs() {
            let _ = codec.decode(&frame, &mut vec![0; bytes]);
        }
    }
}

#[test]
fn every_pattern_of_sixteen_bits_comes_back() {
    // NaNs with payloads, infinities, denormals and zeros of both signs among them.
    let in_order: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let apart: Vec<u8> = (0..=u16::MAX).flat_map(|word| word.wrapping_mul(40_503).to_le_bytes()).collect();
    returns(&in_order);
    returns(&apart);
    for special in [0_u32, 1 << 31, 1, 0x7f80_0000, 0xff80_0001, 0x7fc1_2345, 0x007f_ffff] {
        returns(&special.to_le_bytes().repeat(1000));
    }
}

#[test]
fn few_exponents_take_few_bits() {
    // 16 bits of noise: exponents of a normal distribution, roughly, by how often each halving comes.
    let mut state = 7_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from(state >> 48).unwrap()
    };
    let word = |noise: u16, more: u16| {
        ((124 - u16::try_from(noise.leading_zeros()).unwrap()) << 7) | (more & 0x807f)
    };
    let chunk: Vec<u8> = (0..1 << 19).flat_map(|_| word(noise(), noise()).to_le_bytes()).collect();
    let ratio = |level: Level| {
        let (codec, frame) = level.encode(Some(Element::Two), &chunk);
        assert_ne!(codec, Codec::Raw);
        chunk.len() * 100 / frame.len()
    };
    let (fast, small) = (ratio(Level::Fast), ratio(Level::Small));
    assert!(fast >= 140 && small >= 150, "{fast} and {small} percent");
}

#[test]
fn bytes_that_do_not_shrink_stay_as_they_are() {
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    let noise: Vec<u8> = (0..5000).map(|_| noise()).collect();
    for element in [None, Some(Element::One), Some(Element::Two), Some(Element::Four)] {
        for level in [Level::Fast, Level::Small] {
            assert!(level.encode(element, &noise) == (Codec::Raw, noise.clone()), "{level:?} {element:?}");
        }
    }
    assert_eq!(Level::Fast.encode(Some(Element::Two), &[]), (Codec::Raw, vec![]));
}

#[test]
fn names_are_those_of_codecs_and_levels() {
    for (codec, name) in Codec::NAMES {
        assert_eq!((codec.name(), Codec::from_name(name)), (name, Some(codec)));
    }
    assert_eq!(Codec::from_name("rans"), None);
    assert_eq!(Level::asked(None).unwrap(), None);
    assert_eq!(Level::asked(Some("small")).unwrap(), Some(Level::Small));
    let refused = Level::asked(Some("best")).unwrap_err().to_string();
    assert_eq!(refused, "unknown compression \"best\": expected fast or small");
}
