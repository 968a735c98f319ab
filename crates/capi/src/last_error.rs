//! Why the last call of this thread failed.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::io;

use hvsock::{Refusal, explanation_of, fix_of, refusal_of};

use crate::numbers;

/// The error of a call, in the forms in which C asks for it.
#[derive(Debug)]
pub(crate) struct LastError {
    /// The code of the refusal; 0 if it is none.
    pub(crate) code: u32,
    pub(crate) errno: i32,
    /// The number of `WSAGetLastError`.
    pub(crate) wsa: i32,
    /// `None` until somebody asks for the text of a system call's error, which is `WouldBlock` most of the time.
    texts: Option<Box<Texts>>,
}

/// The texts of an error.
#[derive(Debug, Default)]
struct Texts {
    message: CString,
    label: CString,
    fix: CString,
    fix_kind: CString,
    explanation: CString,
}

thread_local! {
    static LAST: RefCell<Option<LastError>> = const { RefCell::new(None) };
}

impl LastError {
    /// The error of a call of the library.
    pub(crate) fn of(error: &io::Error) -> Self {
        let refusal = refusal_of(error);
        let errno = numbers::errno_of(error);
        let fix = fix_of(error);
        let text_of = |text: Option<String>| c_string(text.unwrap_or_default());
        Self {
            code: refusal.map_or(0, Refusal::code),
            errno,
            wsa: match refusal {
                Some(refusal) if error.kind() == refusal.kind() => refusal.wsa(),
                _ => numbers::wsa_of_errno(errno),
            },
            texts: Some(Box::new(Texts {
                message: c_string(error.to_string()),
                label: text_of(refusal.map(|refusal| refusal.label().to_owned())),
                fix: text_of(fix.as_ref().map(ToString::to_string)),
                fix_kind: text_of(fix.map(|fix| fix.kind().to_owned())),
                explanation: text_of(explanation_of(error).map(ToString::to_string)),
            })),
        }
    }

    /// The error of a system call.
    pub(crate) fn of_errno(errno: i32) -> Self {
        Self {
            code: 0,
            errno,
            wsa: numbers::wsa_of_errno(errno),
            texts: None,
        }
    }

    /// Replaces the number of `errno`, and that of `WSAGetLastError` with it.
    pub(crate) fn with_errno(self, errno: i32) -> Self {
        let wsa = numbers::wsa_of_errno(errno);
        Self { errno, wsa, ..self }
    }

    /// Replaces the number of `WSAGetLastError`, where Windows has another one than the nearest.
    pub(crate) fn with_wsa(self, wsa: i32) -> Self {
        Self { wsa, ..self }
    }

    fn texts(&mut self) -> &Texts {
        let errno = self.errno;
        self.texts.get_or_insert_with(|| {
            let message = c_string(io::Error::from_raw_os_error(errno).to_string());
            Box::new(Texts {
                message,
                ..Texts::default()
            })
        })
    }
}

impl From<io::Error> for LastError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::of_errno(errno),
            None => Self::of(&error),
        }
    }
}

/// The result of a call that C asks about by `errno` and `WSAGetLastError`.
pub(crate) type Result<T> = std::result::Result<T, LastError>;

/// The failure with a number of `errno`.
pub(crate) fn fail<T>(errno: i32) -> Result<T> {
    Err(LastError::of_errno(errno))
}

/// The text without what C cannot represent.
fn c_string(text: String) -> CString {
    let mut bytes = text.into_bytes();
    bytes.retain(|byte| *byte != 0);
    CString::new(bytes).unwrap_or_default()
}

/// Keeps the error of a call for this thread.
pub(crate) fn set(error: LastError) {
    // At the end of a thread there is nobody left to ask.
    let _ = LAST.try_with(|last| last.replace(Some(error)));
}

/// Forgets it.
pub(crate) fn clear() {
    let _ = LAST.try_with(|last| last.replace(None));
}

/// What `get` returns of the error, or the default if there is none.
pub(crate) fn with<T: Default>(get: impl FnOnce(&LastError) -> T) -> T {
    let read = |last: &RefCell<Option<LastError>>| last.borrow().as_ref().map(get);
    LAST.try_with(read).ok().flatten().unwrap_or_default()
}

/// One of the texts of the error.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Text {
    Message,
    Label,
    Fix,
    FixKind,
    Explanation,
}

/// A pointer to a text, valid until the next failing call of this thread. Empty if there is no error.
pub(crate) fn text(which: Text) -> *const c_char {
    let read = |last: &RefCell<Option<LastError>>| {
        let mut last = last.borrow_mut();
        let texts = last.as_mut()?.texts();
        let text = match which {
            Text::Message => &texts.message,
            Text::Label => &texts.label,
            Text::Fix => &texts.fix,
            Text::FixKind => &texts.fix_kind,
            Text::Explanation => &texts.explanation,
        };
        Some(text.as_ptr())
    };
    let pointer = LAST.try_with(read).ok().flatten();
    pointer.unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_thread_is_not_seen_by_another() {
        set(LastError::of(&Refusal::NoListener.into()));
        assert_eq!(with(|last| last.code), 9);
        let other = std::thread::spawn(|| with(|last| last.code)).join();
        assert_eq!(other.unwrap(), 0);
        clear();
        assert_eq!(with(|last| last.code), 0);
    }

    #[test]
    fn a_text_with_a_nul_loses_it() {
        assert_eq!(c_string("a\0b".into()).as_c_str(), c"ab");
    }
}
