//! Serializes every address type as its text. Deserializing applies the same checks as `parse`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{ElementName, HvUrl, PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(
    ElementName,
    HvUrl,
    PartitionName,
    PartitionRef,
    ServiceId,
    ServiceRef,
    VmId
);
