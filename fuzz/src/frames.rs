//! Frame decoding: a segment with a sound header, and frames whose fields the fuzzer chooses.
//!
//! No fuzzer guesses a checksum, so the harness computes those that the input does not ask to be wrong: every check
//! behind the checksums is reached. The layout is the one that the journal's documentation states.

use crate::recovery::{self, Image};

const HEADER_BYTES: usize = 4096;
const NONCE: u64 = 0x0123_4567_89ab_cdef;

/// Input: for each frame 24 bytes of choices, then as many bytes of body as they say.
pub fn frames(data: &[u8]) {
    let mut segment = header();
    let mut rest = data;
    let (mut last, mut frames) = (0_u64, 0);
    while let Some((choice, left)) = rest.split_first_chunk::<24>() {
        rest = left;
        frames += 1;
        if frames > 64 {
            break;
        }
        let [how, len, count, first, prev, offset, pad, ..] = *choice;
        // Half of all numbers: a layer does not come to their end.
        let wide = u64::from_le_bytes(choice[8..16].try_into().expect("eight bytes")) >> 1;
        let body_len = usize::from(len).min(rest.len());
        let (content, left) = rest.split_at(body_len);
        rest = left;
        // Bodies are made of records, unless the input wants raw bytes.
        let (body, records) =
            if how & 1 == 0 { (record(content), 1) } else { (content.to_vec(), u32::from(count)) };
        let pick = |bit: u8, right: u64, small: u8| match (how & bit != 0, how & 0x80 != 0) {
            (false, _) => right,
            (true, false) => right.wrapping_add(u64::from(small)),
            (true, true) => wide,
        };
        let count = if how & 2 == 0 { u64::from(records) } else { pick(2, 0, count) } as u32;
        let first = pick(4, last + 1, first);
        let prev = pick(8, last, prev);
        let claimed = pick(16, body.len() as u64, len) as u32;
        let synced = pick(32, HEADER_BYTES as u64, offset);
        let mut fields = Vec::new();
        fields.extend_from_slice(&claimed.to_le_bytes());
        fields.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        fields.extend_from_slice(&count.to_le_bytes());
        fields.extend_from_slice(&first.to_le_bytes());
        fields.extend_from_slice(&prev.to_le_bytes());
        fields.extend_from_slice(&NONCE.to_le_bytes());
        fields.extend_from_slice(&synced.to_le_bytes());
        fields.extend_from_slice(&0_u64.to_le_bytes());
        let wrong = u32::from(how & 64 != 0);
        segment.extend_from_slice(&(crc32c::crc32c(&fields) ^ wrong).to_le_bytes());
        segment.extend_from_slice(&fields);
        segment.extend_from_slice(&body);
        segment.resize(segment.len().next_multiple_of(8) + usize::from(pad & 7) * 8, 0);
        last = first.saturating_add(u64::from(count)).saturating_sub(1);
    }
    recovery::check(&Image::from([("00000000000000000001.seg".to_owned(), segment)]));
}

fn record(content: &[u8]) -> Vec<u8> {
    let mut record = (content.len() as u32).to_le_bytes().to_vec();
    record.extend_from_slice(content);
    record
}

/// The header of a journal's first segment.
fn header() -> Vec<u8> {
    let mut block = Vec::with_capacity(HEADER_BYTES);
    block.extend_from_slice(b"forebayJ");
    block.extend_from_slice(&1_u32.to_le_bytes());
    block.extend_from_slice(&0_u32.to_le_bytes());
    block.extend_from_slice(&[7; 16]);
    for field in [1, NONCE, 64 << 10, HEADER_BYTES as u64] {
        block.extend_from_slice(&u64::to_le_bytes(field));
    }
    block.resize(HEADER_BYTES, 0);
    let crc = crc32c::crc32c(&block);
    block[12..16].copy_from_slice(&crc.to_le_bytes());
    block
}
