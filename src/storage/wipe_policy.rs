//! How thorough a wipe has to be on which occasion, and what a failed one means.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::wipe::Depth;

/// `policy.wipe`. Not set: it depends on the occasion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thoroughness {
    /// `secure`: the ladder, on every occasion.
    Secure,
    /// `quick`: marks and a discard, on every occasion.
    Quick,
}

/// `policy.wipe_failures`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// `block`: the machine does not become available.
    #[default]
    Block,
    /// `report`: it is logged, and the machine goes on with what could be wiped.
    Report,
}

/// Why there is a wipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The machine comes in, changes hands, or was cut in the middle of that; or a disk that
    /// should be empty is not, for somebody may have put a used one in.
    ChangeOfHands,
    /// The same tenant's OS is installed again.
    Reinstall,
    /// An install failed: nothing must boot from what it left.
    Spoiled,
}

/// How deep a wipe goes. A disk of 20 TB must not be zeroed for the tenant whose data it holds.
#[must_use]
pub fn depth(said: Option<Thoroughness>, occasion: Occasion) -> Depth {
    match (occasion, said) {
        (Occasion::Spoiled, _) => Depth::Marks,
        (_, Some(Thoroughness::Secure)) => Depth::Secure,
        (_, Some(Thoroughness::Quick)) => Depth::Quick,
        (Occasion::ChangeOfHands, None) => Depth::Secure,
        (Occasion::Reinstall, None) => Depth::Quick,
    }
}

/// An enum of the policy that is one word.
pub trait Word: Copy + PartialEq + 'static {
    const KEY: &'static str;
    const WORDS: [(Self, &'static str); 2];
}

impl Word for Thoroughness {
    const KEY: &'static str = "policy.wipe";
    const WORDS: [(Self, &'static str); 2] = [(Self::Secure, "secure"), (Self::Quick, "quick")];
}

impl Word for OnFailure {
    const KEY: &'static str = "policy.wipe_failures";
    const WORDS: [(Self, &'static str); 2] = [(Self::Block, "block"), (Self::Report, "report")];
}

/// For serde's `with`. A word of a newer helper is no order: as if not set.
pub mod word {
    use super::{Deserialize, Deserializer, Serialize, Serializer, Word};

    /// # Errors
    /// The serializer's.
    pub fn serialize<W: Word, S: Serializer>(value: &Option<W>, to: S) -> Result<S::Ok, S::Error> {
        let mut words = W::WORDS.into_iter();
        words
            .find_map(|(known, word)| (Some(known) == *value).then_some(word))
            .serialize(to)
    }

    /// # Errors
    /// When there is no text.
    pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(from: D) -> Result<Option<W>, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        let mut words = W::WORDS.into_iter();
        let value = words.find_map(|(known, word)| (word == text).then_some(known));
        if value.is_none() && !text.is_empty() {
            let [(_, one), (_, other)] = W::WORDS;
            tracing::warn!("{} {text:?} is not {one} or {other}: ignored", W::KEY);
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Policy;

    #[test]
    fn how_deep_on_which_occasion() {
        use Occasion::{ChangeOfHands, Reinstall, Spoiled};
        let table = [
            (ChangeOfHands, [Depth::Secure, Depth::Secure, Depth::Quick]),
            (Reinstall, [Depth::Quick, Depth::Secure, Depth::Quick]),
            (Spoiled, [Depth::Marks, Depth::Marks, Depth::Marks]),
        ];
        for (occasion, expected) in table {
            let said = [None, Some(Thoroughness::Secure), Some(Thoroughness::Quick)];
            assert_eq!(
                said.map(|said| depth(said, occasion)),
                expected,
                "{occasion:?}"
            );
        }
    }

    #[test]
    fn words_are_read_and_written() {
        let json = serde_json::json!({"wipe": "quick", "wipe_failures": "report"});
        let policy: Policy = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(policy.wipe, Some(Thoroughness::Quick));
        assert_eq!(policy.wipe_failures, Some(OnFailure::Report));
        assert_eq!(serde_json::to_value(&policy).unwrap(), json);
        let json = serde_json::json!({"wipe": "burn", "wipe_failures": null});
        let policy: Policy = serde_json::from_value(json).unwrap();
        assert_eq!((policy.wipe, policy.wipe_failures), (None, None));
        assert_eq!(
            serde_json::to_value(&policy).unwrap(),
            serde_json::json!({})
        );
    }
}
