//! A value that is `Sync` because only its owner reaches it.

use std::sync::{Mutex, PoisonError};

/// A value that is reached through `&mut` only, so that it is `Sync` if it is `Send`.
///
/// Boxed futures, streams and receivers of channels are `Send` and not `Sync`. A public type that
/// has one in a field would not be `Sync` either, and its methods that take `&self` would return
/// futures that are not `Send`. The mutex is never locked.
#[derive(Debug)]
pub(crate) struct Exclusive<T>(Mutex<T>);

impl<T> Exclusive<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}
