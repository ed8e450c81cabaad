//! The kinds of damage that named things at rest can take.

use std::collections::BTreeMap;

use crate::random::Random;

/// Bytes that change places: a block of a disk, and what is found in a head or a table.
const SWAPPED_BYTES: [usize; 2] = [4096, 64];

/// Does one kind of damage to one thing, or two: it is flipped, cut, zeroed, swapped, another's, as it was some time ago
/// (`history`), gone, or there twice, which is under a name that `double` makes.
pub fn damage<K: Clone + Ord, B: AsRef<[u8]> + Clone + From<Vec<u8>>>(
    now: &mut BTreeMap<K, B>,
    history: &[BTreeMap<K, B>],
    random: &mut Random,
    double: impl Fn(&K, &mut Random) -> K,
) {
    let names: Vec<K> = now.keys().cloned().collect();
    let Some(name) = random.of(&names) else { return };
    match random.below(8) {
        kind @ 0..4 => {
            let mut bytes = now[name].as_ref().to_vec();
            change(kind, &mut bytes, random);
            now.insert(name.clone(), bytes.into());
        }
        4 => {
            let Some(other) = random.of(&names) else { return };
            let (one, another) = (now[name].clone(), now[other].clone());
            now.insert(other.clone(), one);
            now.insert(name.clone(), another);
        }
        5 | 6 => {
            let Some(older) = random.of(history) else { return };
            let all: Vec<&K> = older.keys().chain(&names).collect();
            let Some(name) = random.of(&all) else { return };
            match older.get(*name) {
                Some(bytes) => now.insert((*name).clone(), bytes.clone()),
                None => now.remove(*name),
            };
        }
        _ => {
            let bytes = now[name].clone();
            now.insert(double(name, random), bytes);
        }
    }
}

/// Changes some bytes of one thing.
fn change(kind: usize, bytes: &mut Vec<u8>, random: &mut Random) {
    match kind {
        0 if !bytes.is_empty() => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        0 | 1 => bytes.truncate(random.below(bytes.len() + 1)),
        2 => {
            let start = random.below(bytes.len() + 1);
            let length = random.below(bytes.len() - start + 1);
            bytes[start..start + length].fill(0);
        }
        _ => {
            let middle = bytes.len() / 2;
            let length = middle.min(SWAPPED_BYTES[random.below(2)]);
            let (left, right) = bytes.split_at_mut(middle);
            let places = [left.len(), right.len()].map(|half| random.below(half - length + 1));
            left[places[0]..places[0] + length]
                .swap_with_slice(&mut right[places[1]..places[1] + length]);
        }
    }
}
