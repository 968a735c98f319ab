//! The start tags of an XML document with their attributes: as much as the description of a domain needs. It
//! follows no entity but the predefined and numeric ones, and opens no file.

use std::rc::Rc;

/// A start tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag<'a> {
    pub name: &'a str,
    /// The names of the elements around it, outermost first.
    pub parents: Rc<[&'a str]>,
    attributes: Vec<(&'a str, String)>,
}

/// The greatest depth of elements.
const MAX_DEPTH: usize = 64;
/// The most elements. A domain with hundreds of devices has some thousand.
const MAX_TAGS: usize = 16_384;

impl Tag<'_> {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// The longest entity between `&` and `;`: a character's number.
const MAX_ENTITY: usize = 10;

/// The start tags in their order, up to the first thing that is malformed, or one too many.
pub fn tags(text: &str) -> Vec<Tag<'_>> {
    let mut tags = Vec::new();
    let mut parents: Vec<&str> = Vec::new();
    // Siblings share their parents: otherwise each element would take the memory of all of them.
    let mut shared: Rc<[&str]> = Rc::from([]);
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let skipped = [("!--", "-->"), ("![CDATA[", "]]>"), ("?", "?>"), ("!", ">")]
            .into_iter()
            .find_map(|(open, close)| rest.strip_prefix(open).map(|inner| (inner, close)));
        if let Some((inner, close)) = skipped {
            let Some(end) = inner.find(close) else { break };
            rest = &inner[end + close.len()..];
            continue;
        }
        if let Some(inner) = rest.strip_prefix('/') {
            let Some(end) = inner.find('>') else { break };
            if parents.pop().is_some() {
                shared = parents.as_slice().into();
            }
            rest = &inner[end + 1..];
            continue;
        }
        let Some((tag, is_empty, after)) = start_tag(rest, &shared) else {
            break;
        };
        rest = after;
        if !is_empty {
            parents.push(tag.name);
            shared = parents.as_slice().into();
        }
        tags.push(tag);
        if parents.len() > MAX_DEPTH || tags.len() == MAX_TAGS {
            break;
        }
    }
    tags
}

/// A start tag after its `<`, whether its element is empty, and the text after it.
fn start_tag<'a>(text: &'a str, parents: &Rc<[&'a str]>) -> Option<(Tag<'a>, bool, &'a str)> {
    let ends = |c: char| c.is_whitespace() || "/>=".contains(c);
    let end = text.find(ends)?;
    let (name, mut rest) = text.split_at(end);
    let mut attributes = Vec::new();
    loop {
        rest = rest.trim_start();
        let is_empty = rest.starts_with("/>");
        if let Some(after) = rest.strip_prefix("/>").or_else(|| rest.strip_prefix('>')) {
            let parents = Rc::clone(parents);
            let tag = Tag {
                name,
                parents,
                attributes,
            };
            return Some((tag, is_empty, after));
        }
        let end = rest.find(ends).filter(|end| *end > 0)?;
        let (key, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=')?.trim_start();
        let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
        let value = &value[1..];
        let end = value.find(quote)?;
        attributes.push((key, unescaped(&value[..end])));
        rest = &value[end + 1..];
    }
}

/// Text without its entities.
fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('&') {
        plain.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        // A text of many `&` is not searched to its end for each of them.
        let near = rest.as_bytes().iter().take(MAX_ENTITY + 1);
        let end = near.copied().position(|byte| byte == b';');
        let entity = end.map(|end| (&rest[..end], &rest[end + 1..]));
        let decoded = entity.and_then(|(name, after)| Some((character(name)?, after)));
        match decoded {
            Some((character, after)) => {
                plain.push(character);
                rest = after;
            }
            None => plain.push('&'),
        }
    }
    plain + rest
}

fn character(entity: &str) -> Option<char> {
    Some(match entity {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = entity.strip_prefix('#')?;
            let number = match number.strip_prefix('x') {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(number)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_without_entities_and_comments_are_skipped() {
        let text = "<?xml version='1.0'?><!-- <cid address='9'/> --><a><![CDATA[<b/>]]>\
                    <vsock model = \"virtio\" ><cid auto='no' address='&#x33;&amp;'/></vsock></a>";
        let tags = tags(text);
        let names: Vec<_> = tags.iter().map(|tag| tag.name).collect();
        assert_eq!(names, ["a", "vsock", "cid"]);
        assert_eq!(*tags[2].parents, ["a", "vsock"]);
        assert_eq!(tags[2].attribute("address"), Some("3&"));
        assert_eq!(tags[1].attribute("model"), Some("virtio"));
    }

    #[test]
    fn a_long_description_takes_time_and_memory_in_proportion_to_its_length() {
        let entities = "&".repeat(1 << 18);
        let text = format!("<a b='{entities}'/>");
        assert_eq!(tags(&text)[0].attribute("b"), Some(entities.as_str()));
        let nested = "<a>".repeat(MAX_DEPTH);
        let siblings = nested.clone() + &"<b/>".repeat(4 << 20);
        let found = tags(&siblings);
        assert_eq!(found.len(), MAX_TAGS);
        let shared = &found[MAX_DEPTH].parents;
        assert!(
            found[MAX_DEPTH..]
                .iter()
                .all(|tag| Rc::ptr_eq(&tag.parents, shared))
        );
    }

    #[test]
    fn the_longest_entity_is_decoded() {
        let found = tags("<a b='&#x10FFFF;&#1114111;&#x0010FFFF;'/>");
        let value = found[0].attribute("b");
        assert_eq!(value, Some("\u{10ffff}\u{10ffff}\u{10ffff}"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[<>/='\"&;#! a-cé?\\[\\]-]{0,80}") {
            let _ = tags(&text);
        }
    }
}
