//! The modules of one crate, read from its source: what each defines, imports and mentions.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::parse::Parser as _;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned as _;
use syn::visit::Visit;
use syn::{Attribute, Item, Meta, Token, UseTree, Visibility};

/// Returns the text of a file. `None` if there is no such file.
pub type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// All modules of one crate. The first is its root.
pub struct Source {
    pub modules: Vec<Module>,
}

/// One module. Several can share a file, since a module may be written inside another one's file.
pub struct Module {
    pub file: PathBuf,
    pub parent: Option<usize>,
    /// It is in no build but a test's.
    pub is_test: bool,
    /// Modules declared here. Two may have one name, for two operating systems.
    pub children: Vec<(String, usize)>,
    /// Names of the items defined here.
    pub items: HashSet<String>,
    /// Words of item macros: one of them may be the name of an item that the macro defines.
    pub macro_words: HashSet<String>,
    /// Names that `use` brings into scope, each with its path.
    pub imports: Vec<(String, Vec<String>)>,
    /// Paths of `use path::*`.
    pub globs: Vec<Vec<String>>,
    /// Paths that the code mentions, outside tests. A re-export is none.
    pub mentions: Vec<Mention>,
}

/// A path in the code.
pub struct Mention {
    pub path: Vec<String>,
    pub line: usize,
}

impl Source {
    /// Reads the crate whose root is the file `root`.
    pub fn read(root: &Path, read: Read<'_>) -> Self {
        let mut source = Source {
            modules: Vec::new(),
        };
        let folder = root.with_file_name("");
        source.file(root, &folder, None, false, read);
        source
    }

    /// Reads one file as a module, whose children's files are in `folder`.
    fn file(
        &mut self,
        file: &Path,
        folder: &Path,
        parent: Option<usize>,
        is_test: bool,
        read: Read<'_>,
    ) -> usize {
        let module = self.module(file, parent, is_test);
        self.items(module, &parsed(file, read), folder, read);
        module
    }

    fn module(&mut self, file: &Path, parent: Option<usize>, is_test: bool) -> usize {
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            is_test,
            children: Vec::new(),
            items: HashSet::new(),
            macro_words: HashSet::new(),
            imports: Vec::new(),
            globs: Vec::new(),
            mentions: Vec::new(),
        });
        self.modules.len() - 1
    }

    fn items(&mut self, module: usize, items: &[Item], folder: &Path, read: Read<'_>) {
        for item in items {
            match item {
                Item::Mod(item) => self.child(module, item, folder, read),
                item if in_tests_only(attributes(item)) => {}
                Item::Use(item) => self.import(module, item),
                Item::Macro(item) if item.mac.path.is_ident("include") => {
                    let tokens = item.mac.tokens.clone();
                    let name: syn::LitStr = syn::parse2(tokens).expect("include! takes a name");
                    let file = self.beside(module, &name.value());
                    self.items(module, &parsed(&file, read), folder, read);
                }
                item => {
                    let here = &mut self.modules[module];
                    here.items.extend(name_of(item));
                    if let Item::Macro(item) = item {
                        words(&item.mac.tokens, &mut here.macro_words);
                    }
                    Code { module: here }.visit_item(item);
                }
            }
        }
    }

    fn child(&mut self, module: usize, item: &syn::ItemMod, folder: &Path, read: Read<'_>) {
        let name = item.ident.to_string();
        let is_test = self.modules[module].is_test || in_tests_only(&item.attrs);
        let inner = folder.join(&name);
        let child = match (&item.content, path_attribute(&item.attrs)) {
            (Some((_, items)), _) => {
                let file = self.modules[module].file.clone();
                let child = self.module(&file, Some(module), is_test);
                self.items(child, items, &inner, read);
                child
            }
            (None, Some(path)) => {
                let file = self.beside(module, &path);
                let folder = file.with_file_name("");
                self.file(&file, &folder, Some(module), is_test, read)
            }
            (None, None) => {
                let beside = folder.join(format!("{name}.rs"));
                let file = match read(&beside) {
                    Some(_) => beside,
                    None => inner.join("mod.rs"),
                };
                self.file(&file, &inner, Some(module), is_test, read)
            }
        };
        self.modules[module].children.push((name, child));
    }

    /// The file `name` in the folder of the module's own file.
    fn beside(&self, module: usize, name: &str) -> PathBuf {
        self.modules[module].file.with_file_name(name)
    }

    fn import(&mut self, module: usize, item: &syn::ItemUse) {
        let here = &mut self.modules[module];
        let is_private = matches!(item.vis, Visibility::Inherited);
        for leaf in leaves(&item.tree) {
            if is_private && !leaf.is_glob {
                here.mentions.push(Mention {
                    path: leaf.path.clone(),
                    line: leaf.line,
                });
            }
            if leaf.is_glob {
                here.globs.push(leaf.path);
            } else {
                here.imports.push((leaf.name, leaf.path));
            }
        }
    }
}

fn parsed(file: &Path, read: Read<'_>) -> Vec<Item> {
    let text = read(file).unwrap_or_else(|| panic!("{} does not exist", file.display()));
    match syn::parse_file(&text) {
        Ok(syntax) => syntax.items,
        Err(error) => panic!("{}: {error}", file.display()),
    }
}

/// One path of a `use` declaration.
struct Leaf {
    path: Vec<String>,
    name: String,
    is_glob: bool,
    line: usize,
}

fn leaves(tree: &UseTree) -> Vec<Leaf> {
    fn walk(tree: &UseTree, prefix: &[String], leaves: &mut Vec<Leaf>) {
        let line = tree.span().start().line;
        let with = |name: String| [prefix, &[name]].concat();
        match tree {
            UseTree::Path(tree) => walk(&tree.tree, &with(tree.ident.to_string()), leaves),
            UseTree::Group(tree) => tree
                .items
                .iter()
                .for_each(|item| walk(item, prefix, leaves)),
            UseTree::Glob(_) => leaves.push(Leaf {
                path: prefix.to_vec(),
                name: String::new(),
                is_glob: true,
                line,
            }),
            UseTree::Name(_) | UseTree::Rename(_) => {
                let (ident, name) = match tree {
                    UseTree::Rename(tree) => (&tree.ident, Some(tree.rename.to_string())),
                    UseTree::Name(tree) => (&tree.ident, None),
                    _ => return,
                };
                // `use a::{self}` imports `a`.
                let path = if ident == "self" && !prefix.is_empty() {
                    prefix.to_vec()
                } else {
                    with(ident.to_string())
                };
                let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
                leaves.push(Leaf {
                    path,
                    name,
                    is_glob: false,
                    line,
                });
            }
        }
    }
    let mut found = Vec::new();
    walk(tree, &[], &mut found);
    found
}

/// Collects the paths in the code of one module.
struct Code<'a> {
    module: &'a mut Module,
}

impl Code<'_> {
    fn mention(&mut self, path: Vec<String>, line: usize) {
        self.module.mentions.push(Mention { path, line });
    }

    /// A macro's input has no grammar of its own, so every run of `a::b::c` counts as a path.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let (mut colons, mut after_dot) = (0, false);
        for token in tokens {
            if let TokenTree::Ident(ident) = &token {
                if colons != 2 {
                    self.end_of_path(&mut path, line);
                }
                if !after_dot {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                }
                (colons, after_dot) = (0, false);
                continue;
            }
            after_dot = false;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                }
                TokenTree::Punct(punct) => {
                    self.end_of_path(&mut path, line);
                    after_dot = punct.as_char() == '.';
                }
                TokenTree::Group(group) => {
                    self.end_of_path(&mut path, line);
                    self.tokens(group.stream());
                }
                _ => self.end_of_path(&mut path, line),
            }
            if path.is_empty() {
                colons = 0;
            }
        }
        self.end_of_path(&mut path, line);
    }

    fn end_of_path(&mut self, path: &mut Vec<String>, line: usize) {
        // One word in lower case is a variable, a keyword, or a function whose import counts.
        let counts = match path.as_slice() {
            [] => false,
            [word] => word.starts_with(char::is_uppercase),
            _ => true,
        };
        if counts {
            self.mention(path.clone(), line);
        }
        path.clear();
    }
}

impl<'ast> Visit<'ast> for Code<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let words = path.segments.iter().map(|part| part.ident.to_string());
            self.mention(words.collect(), path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        for leaf in leaves(&item.tree) {
            self.mention(leaf.path, leaf.line);
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
    }

    fn visit_item(&mut self, item: &'ast Item) {
        if !in_tests_only(attributes(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            _ => return,
        };
        if !in_tests_only(attributes) {
            syn::visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !in_tests_only(&field.attrs) {
            syn::visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !in_tests_only(&local.attrs) {
            syn::visit::visit_local(self, local);
        }
    }

    /// `pub(in path)` and attributes use nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

fn words(tokens: &TokenStream, found: &mut HashSet<String>) {
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(ident) => {
                found.insert(ident.to_string());
            }
            TokenTree::Group(group) => words(&group.stream(), found),
            _ => {}
        }
    }
}

fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(ident.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes
        .iter()
        .find_map(|attribute| match &attribute.meta {
            Meta::NameValue(meta) if meta.path.is_ident("path") => match &meta.value {
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Str(text),
                    ..
                }) => Some(text.value()),
                _ => None,
            },
            _ => None,
        })
}

/// `true` if the attributes leave the item out of every build but a test's.
fn in_tests_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            syn::parse2(list.tokens.clone()).is_ok_and(|meta| needs_test(&meta))
        }
        _ => false,
    })
}

fn needs_test(meta: &Meta) -> bool {
    match meta {
        Meta::Path(path) => path.is_ident("test") || path.is_ident("doctest"),
        Meta::List(list) => {
            let parts = Punctuated::<Meta, Token![,]>::parse_terminated
                .parse2(list.tokens.clone())
                .unwrap_or_default();
            if list.path.is_ident("all") {
                parts.iter().any(needs_test)
            } else {
                list.path.is_ident("any") && !parts.is_empty() && parts.iter().all(needs_test)
            }
        }
        Meta::NameValue(_) => false,
    }
}
