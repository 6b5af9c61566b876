//! One revision of one record, as a file.
//!
//! | bytes | content |
//! |---|---|
//! | 0-7 | magic `DYADREG` and a zero byte |
//! | 8-9 | format, 1 |
//! | 10-11 | length k of the key |
//! | 12-15 | length v of the value |
//! | 16-23 | revision |
//! | 24-27 | CRC-32C of everything but these four bytes |
//! | 28.. | the key, k bytes; then the value, v bytes; then nothing |
//!
//! Numbers are little-endian.

use super::super::{Corruption, Key, Revision};

const MAGIC: [u8; 8] = *b"DYADREG\0";
const FORMAT: u16 = 1;
const CRC_AT: usize = 24;
/// Bytes before the key.
pub(super) const HEADER_BYTES: usize = 28;

/// The file of a record.
pub(super) fn encode(key: &Key, revision: Revision, value: &[u8]) -> Vec<u8> {
    let key = key.as_str().as_bytes();
    let mut file = Vec::with_capacity(HEADER_BYTES + key.len() + value.len());
    file.extend(MAGIC);
    file.extend(FORMAT.to_le_bytes());
    file.extend(u16::try_from(key.len()).expect("keys are short").to_le_bytes());
    file.extend(u32::try_from(value.len()).expect("values are short").to_le_bytes());
    file.extend(revision.number().to_le_bytes());
    file.extend([0; 4]);
    assert_eq!(file.len(), HEADER_BYTES);
    file.extend(key);
    file.extend(value);
    let crc = checksum(&file);
    file[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    file
}

/// The value in the file of this revision of this key.
pub(super) fn decode(key: &Key, revision: Revision, file: &[u8]) -> Result<Vec<u8>, Corruption> {
    if file.get(..8) != Some(&MAGIC) {
        return Err(Corruption::Magic);
    }
    let header = file.get(..HEADER_BYTES).ok_or(Corruption::Length)?;
    let format = u16::from_le_bytes([header[8], header[9]]);
    if format != FORMAT {
        return Err(Corruption::Format(format));
    }
    let key_bytes = usize::from(u16::from_le_bytes([header[10], header[11]]));
    let value_bytes = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if file.len() as u64 != (HEADER_BYTES + key_bytes) as u64 + u64::from(value_bytes) {
        return Err(Corruption::Length);
    }
    if header[CRC_AT..] != checksum(file).to_le_bytes() {
        return Err(Corruption::Checksum);
    }
    let (name, value) = file[HEADER_BYTES..].split_at(key_bytes);
    if name != key.as_str().as_bytes() || header[16..CRC_AT] != revision.number().to_le_bytes() {
        return Err(Corruption::Misplaced);
    }
    Ok(value.to_vec())
}

fn checksum(file: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&file[..CRC_AT]), &file[HEADER_BYTES..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Key, Revision, Vec<u8>) {
        let (key, revision) = (Key::new("pair").expect("a key"), Revision::new(0x0102).expect("not zero"));
        let file = encode(&key, revision, b"value");
        (key, revision, file)
    }

    #[test]
    fn the_bytes_are_what_the_table_says() {
        let (key, revision, file) = sample();
        let expected = [
            b"DYADREG\0".as_slice(),
            &[1, 0],
            &[4, 0],
            &[5, 0, 0, 0],
            &[2, 1, 0, 0, 0, 0, 0, 0],
            &crc32c::crc32c(b"DYADREG\0\x01\0\x04\0\x05\0\0\0\x02\x01\0\0\0\0\0\0pairvalue").to_le_bytes(),
            b"pairvalue",
        ];
        assert_eq!(file, expected.concat());
        assert_eq!(decode(&key, revision, &file), Ok(b"value".to_vec()));
    }

    #[test]
    fn every_changed_bit_and_every_other_length_shows() {
        let (key, revision, file) = sample();
        for bit in 0..file.len() * 8 {
            let mut damaged = file.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&key, revision, &damaged).is_err(), "bit {bit}");
        }
        for length in 0..file.len() {
            assert!(decode(&key, revision, &file[..length]).is_err(), "{length} bytes");
        }
        assert_eq!(decode(&key, revision, &[&file[..], b"x"].concat()), Err(Corruption::Length));
    }

    #[test]
    fn a_record_of_another_place_or_time_is_not_taken() {
        let (key, revision, file) = sample();
        let (other, later) = (Key::new("pear").expect("a key"), Revision::new(7).expect("not zero"));
        assert_eq!(decode(&other, revision, &file), Err(Corruption::Misplaced));
        assert_eq!(decode(&key, later, &file), Err(Corruption::Misplaced));
        let mut newer = file;
        newer[8] = 2;
        assert_eq!(decode(&key, revision, &newer), Err(Corruption::Format(2)), "said before anything is checked");
    }
}
