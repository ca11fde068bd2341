//! The parts of a spec that only a runtime needs.

use super::{Credentials, PlacementProgress, PullProgress, RunSpec};

/// A runtime's access to the secrets and the callbacks of a [`RunSpec`].
///
/// [`Runtime::create`](crate::runtime::Runtime::create) gets it from
/// [`CreateRequest::view`](crate::runtime::CreateRequest::view). Other methods of a runtime call
/// [`new`](Self::new) on the spec that they receive.
///
/// ```
/// use moat::RunSpec;
/// use moat::spec::RuntimeView;
///
/// let spec = RunSpec::new("busybox").env("TOKEN", "s3cr3t");
/// let env: Vec<_> = RuntimeView::new(&spec).environment().collect();
/// assert_eq!(env, [("TOKEN", "s3cr3t")]);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RuntimeView<'a> {
    spec: &'a RunSpec,
}

impl<'a> RuntimeView<'a> {
    /// Returns the runtime's view of `spec`.
    pub fn new(spec: &'a RunSpec) -> Self {
        Self { spec }
    }

    /// Returns the names and values of the environment. The values are secrets.
    pub fn environment(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.spec.environment()
    }

    /// Returns the paths and values of the secret files. The values are secrets.
    pub fn secret_files(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let files = self.spec.secret_files.iter();
        files.map(|(path, value)| (path.as_str(), value.0.as_slice()))
    }

    /// Returns the registry credentials of the spec.
    pub fn credentials(self) -> Option<&'a Credentials> {
        self.spec.credentials.as_ref()
    }

    /// Returns the patch of the engine's create request. It may hold secrets.
    pub fn patch(self) -> Option<&'a serde_json::Value> {
        self.spec.patch.as_ref()
    }

    /// Reports the progress of a pull to the callback of the spec.
    pub fn report_pull(self, progress: PullProgress) {
        if let Some(on_pull) = &self.spec.on_pull {
            on_pull(progress);
        }
    }

    /// Reports the progress of a placement to the callback of the spec.
    ///
    /// A runtime reports a change only, and not each answer of its engine.
    pub fn report_placement(self, progress: PlacementProgress) {
        if let Some(on_placement) = &self.spec.on_placement {
            on_placement(progress);
        }
    }
}
