//! The partition that a container is to be, by its annotations and labels.

use hvsock_address::{InvalidName, PartitionName};
use hvsock_text::printable;

use crate::api::{Container, PodSandbox};

/// The name of the partition: of a container, or of every container of a Pod.
const NAME: &str = "hvsock.dev/name";
/// The name of the partition of one container of a Pod: this, and the container's name.
const NAME_OF_CONTAINER: &str = "hvsock.dev/container.";
/// Whether the partition is removed with the container.
const EPHEMERAL: &str = "hvsock.dev/ephemeral";
/// The sibling groups of the partition, separated by commas.
const GROUPS: &str = "hvsock.dev/groups";
/// How many characters of a container's id `{id}` stands for, as engines show it.
const SHORT_ID: usize = 12;

/// What a container's annotations ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The partition.
    pub name: PartitionName,
    /// Whether a partition that is added for the container is removed with it.
    pub ephemeral: bool,
    /// The sibling groups of a partition that is added for the container.
    pub groups: Vec<String>,
    /// The runtime's id of the container.
    pub container_id: String,
    /// The Pod's namespace; empty outside Kubernetes.
    pub namespace: String,
}

/// Why annotations cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The name cannot be a partition's.
    #[error("{key}: {value} cannot be the name of a partition: {error}")]
    Name {
        /// The annotation's key.
        key: String,
        /// The name, with placeholders replaced.
        value: String,
        /// What is wrong with it.
        error: InvalidName,
    },
    /// The name is that of a container in a virtual machine.
    #[error(
        "{key}: {name} cannot be the name of a partition: a container in a VM is added by the broker in that VM"
    )]
    Nested {
        /// The annotation's key.
        key: String,
        /// The name.
        name: PartitionName,
    },
    /// The annotation is neither `true` nor `false`.
    #[error("{EPHEMERAL}: {0} is neither `true` nor `false`")]
    Ephemeral(String),
}

impl Wanted {
    /// Reads what a container asks for: its own annotations come first, then its labels, then those of its Pod.
    /// `None` if it asks for nothing.
    pub(crate) fn read(pod: &PodSandbox, container: &Container) -> Result<Option<Self>, Unusable> {
        let own = [&container.annotations, &container.labels];
        let of_pod = [&pod.annotations, &pod.labels];
        let find = |key: &str, maps: [&std::collections::HashMap<String, String>; 2]| {
            let values = maps.into_iter().filter_map(|map| map.get(key));
            let found = values.into_iter().find(|value| !value.is_empty()).cloned();
            found.map(|value| (key.to_owned(), value))
        };
        let of_this = format!("{NAME_OF_CONTAINER}{}", container.name);
        let name = find(NAME, own)
            .or_else(|| find(&of_this, of_pod))
            .or_else(|| find(NAME, of_pod));
        let Some((key, name)) = name else {
            return Ok(None);
        };
        let name = replaced(&name, pod, container);
        let name = match PartitionName::new(name.as_str()) {
            Ok(name) if name.is_nested() => return Err(Unusable::Nested { key, name }),
            Ok(name) => name,
            Err(error) => {
                let value = printable(&name).to_string();
                return Err(Unusable::Name { key, value, error });
            }
        };
        let setting = |key| {
            find(key, own)
                .or_else(|| find(key, of_pod))
                .map(|(_, value)| value)
        };
        let ephemeral = match setting(EPHEMERAL).as_deref() {
            None | Some("true") => true,
            Some("false") => false,
            Some(other) => return Err(Unusable::Ephemeral(printable(&other).to_string())),
        };
        let groups = setting(GROUPS).unwrap_or_default();
        let groups = groups
            .split(',')
            .map(str::trim)
            .filter(|group| !group.is_empty());
        Ok(Some(Self {
            name,
            ephemeral,
            groups: groups.map(str::to_owned).collect(),
            container_id: container.id.clone(),
            namespace: pod.namespace.clone(),
        }))
    }
}

/// The name with its placeholders replaced: `{namespace}`, `{pod}`, `{uid}`, `{container}` and `{id}`.
fn replaced(name: &str, pod: &PodSandbox, container: &Container) -> String {
    let id: String = container.id.chars().take(SHORT_ID).collect();
    let values = [
        ("{namespace}", pod.namespace.as_str()),
        ("{pod}", pod.name.as_str()),
        ("{uid}", pod.uid.as_str()),
        ("{container}", container.name.as_str()),
        ("{id}", id.as_str()),
    ];
    let (mut text, mut rest) = (String::new(), name);
    // What a placeholder is replaced by has none.
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        text.push_str(before);
        let found = values
            .iter()
            .find(|(placeholder, _)| from.starts_with(placeholder));
        let (placeholder, value) = found.copied().unwrap_or(("{", "{"));
        text.push_str(value);
        rest = &from[placeholder.len()..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn map(entries: &[(&str, &str)]) -> HashMap<String, String> {
        let entries = entries.iter();
        entries
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn pod(annotations: &[(&str, &str)], labels: &[(&str, &str)]) -> PodSandbox {
        PodSandbox {
            id: "sandbox".to_owned(),
            name: "shop-7f9".to_owned(),
            uid: "u-1".to_owned(),
            namespace: "prod".to_owned(),
            labels: map(labels),
            annotations: map(annotations),
        }
    }

    fn container(annotations: &[(&str, &str)], labels: &[(&str, &str)]) -> Container {
        Container {
            id: "0123456789abcdef0123".to_owned(),
            name: "web".to_owned(),
            labels: map(labels),
            annotations: map(annotations),
            ..Container::default()
        }
    }

    fn name(pod: &PodSandbox, container: &Container) -> Option<String> {
        Some(Wanted::read(pod, container).unwrap()?.name.to_string())
    }

    #[test]
    fn a_container_is_named_by_itself_before_its_pod_and_by_annotations_before_labels() {
        let none = || container(&[], &[]);
        assert_eq!(name(&pod(&[], &[]), &none()), None);
        assert_eq!(name(&pod(&[("hvsock.dev/name", "")], &[]), &none()), None);
        let all = |from: usize| {
            let entries = [
                ("hvsock.dev/name", "own-annotation"),
                ("hvsock.dev/name", "own-label"),
                ("hvsock.dev/container.web", "of-this"),
                ("hvsock.dev/name", "of-pod"),
                ("hvsock.dev/name", "pod-label"),
            ];
            let at = |number: usize| {
                if number >= from {
                    &entries[number..=number]
                } else {
                    &[]
                }
            };
            let annotations = [at(2), at(3)].concat();
            name(&pod(&annotations, at(4)), &container(at(0), at(1)))
        };
        let names: Vec<_> = (0..6).map(all).collect();
        let want = [
            "own-annotation",
            "own-label",
            "of-this",
            "of-pod",
            "pod-label",
        ];
        assert_eq!(names[..5], want.map(|name| Some(name.to_owned())));
        assert_eq!(names[5], None);
        let other = pod(&[("hvsock.dev/container.db", "x")], &[]);
        assert_eq!(name(&other, &none()), None);
    }

    #[test]
    fn placeholders_are_replaced_once() {
        let mut container = container(
            &[("hvsock.dev/name", "{namespace}-{pod}-{container}-{id}")],
            &[],
        );
        let pod = pod(&[], &[]);
        assert_eq!(
            name(&pod, &container).as_deref(),
            Some("prod-shop-7f9-web-0123456789ab")
        );
        container.name = "{pod}".to_owned();
        let error = Wanted::read(&pod, &container).unwrap_err().to_string();
        assert!(
            error.starts_with("hvsock.dev/name: prod-shop-7f9-{pod}-"),
            "{error}"
        );
        for broken in [
            "a{",
            "{nothing}",
            "}{pod",
            "\x1b[2J",
            "parent",
            &"x".repeat(64),
            "a/b",
        ] {
            container.annotations = map(&[("hvsock.dev/name", broken)]);
            let error = Wanted::read(&pod, &container).unwrap_err().to_string();
            assert!(
                error.contains("cannot be the name of a partition"),
                "{error}"
            );
            assert_eq!(hvsock_text::first_escaped(&error), None, "{error}");
        }
    }

    #[test]
    fn a_partition_is_removed_with_its_container_unless_the_annotation_says_otherwise() {
        let read = |entries: &[(&str, &str)]| {
            let entries = [&[("hvsock.dev/name", "web")], entries].concat();
            Wanted::read(&pod(&[], &[]), &container(&entries, &[])).map(Option::unwrap)
        };
        assert!(read(&[]).unwrap().ephemeral);
        assert!(read(&[("hvsock.dev/ephemeral", "true")]).unwrap().ephemeral);
        assert!(
            !read(&[("hvsock.dev/ephemeral", "false")])
                .unwrap()
                .ephemeral
        );
        let error = read(&[("hvsock.dev/ephemeral", "yes")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "hvsock.dev/ephemeral: yes is neither `true` nor `false`"
        );
        let groups = read(&[("hvsock.dev/groups", " a, ,b,")]).unwrap().groups;
        assert_eq!(groups, ["a", "b"]);
    }
}
