//! Random edits of JSON values, for tests of what a reader does with damaged input.

use serde_json::{Map, Value};

/// One edit. Any numbers are one, so a test or a fuzzer can choose them at random.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// Which of the nodes is edited, modulo their number.
    pub node: u32,
    /// What is done to it.
    pub kind: u8,
    /// What it is replaced by.
    pub value: u64,
}

impl Edit {
    /// Applies the edit to a value.
    pub fn apply(self, root: &mut Value) {
        let mut paths = Vec::new();
        collect(root, &mut String::new(), &mut paths);
        let path = |number: u64| &paths[(number % paths.len() as u64) as usize];
        let (at, other) = (path(u64::from(self.node)), path(self.value));
        let copied = root.pointer(other).cloned();
        let Some(node) = root.pointer_mut(at) else {
            return;
        };
        let value = self.value;
        match self.kind % 12 {
            0 => *node = Value::from(value % 4),
            1 => *node = Value::from(value),
            2 => *node = Value::from(value.cast_signed()),
            3 => *node = Value::from([u64::MAX, 1 << 63, 1 << 32, 65_536][value as usize % 4] - 1),
            4 | 5 => add(node, value),
            6 => *node = Value::Null,
            7 => *node = Value::from(value.is_multiple_of(2)),
            8 => *node = Value::from(format!("x{value}")),
            9 => *node = copied.unwrap_or_default(),
            _ => rearrange(node, value),
        }
    }
}

/// Adds a few to a number, or inverts a bool.
fn add(node: &mut Value, value: u64) {
    if let Some(number) = node.as_i64() {
        *node = Value::from(number.wrapping_add(value.cast_signed() % 3));
    } else if let Some(number) = node.as_u64() {
        *node = Value::from(number.wrapping_sub(value % 3));
    } else if let Some(is_true) = node.as_bool() {
        *node = Value::from(!is_true);
    }
}

/// Removes, repeats or moves an element.
fn rearrange(node: &mut Value, value: u64) {
    match node {
        Value::Array(all) if !all.is_empty() => {
            let at = (value / 4) as usize % all.len();
            match value % 4 {
                0 => drop(all.remove(at)),
                1 => all.push(all[at].clone()),
                2 => all.swap(0, at),
                _ => all.rotate_left(at),
            }
        }
        Value::Object(all) if !all.is_empty() => {
            let names: Vec<String> = all.keys().cloned().collect();
            let name = &names[(value / 4) as usize % names.len()];
            match (value % 4, all.remove(name)) {
                (1, Some(old)) => drop(all.insert(format!("{name}2"), old)),
                (2, Some(old)) => *all = Map::from_iter([(name.clone(), old)]),
                _ => {}
            }
        }
        _ => {}
    }
}

/// The JSON pointers of a value and of everything in it.
fn collect(value: &Value, path: &mut String, paths: &mut Vec<String>) {
    paths.push(path.clone());
    let len = path.len();
    let mut child = |name: &str, value: &Value| {
        path.push('/');
        path.push_str(&name.replace('~', "~0").replace('/', "~1"));
        collect(value, path, paths);
        path.truncate(len);
    };
    match value {
        Value::Array(all) => {
            for (at, value) in all.iter().enumerate() {
                child(&at.to_string(), value);
            }
        }
        Value::Object(all) => {
            for (name, value) in all {
                child(name, value);
            }
        }
        _ => {}
    }
}
