//! The guides from the repository's `docs` directory.
//!
//! - [`integrating`]: from an empty crate to a tested integration.
//! - [`testing`]: containers in your tests.
//! - [`ci`]: a CI harness to copy from.
//! - [`engines`]: engines and their differences.
//! - [`kubernetes`]: runs in the pods of a cluster.
//! - [`scale`]: from one run to a million a day.
//! - [`audit_format`]: the audit file, byte by byte.
//! - [`ledger_format`]: the ledger of a root, byte by byte.
//! - [`trust`]: what a root proves, to whom, and how to check it.
//! - [`guarantees`]: every guarantee, the tests that check it, and the limitations.
//! - [`examples`]: the source of the smaller examples.
//!
//! `integrating` and `testing` are complete only if the features that their code uses are enabled.

// The pages use reference links. Each page ends with definitions that are relative paths, for
// readers of the repository. The first definition of a label wins, so the definitions before a page
// replace them by items. `tests/format/docs.rs` checks that no definition is missing.

#[cfg_attr(
    all(feature = "docker", feature = "testing", feature = "conformance"),
    doc = "
[engines]: crate::guide::engines
[custom_sink]: crate::guide::examples::custom_sink
[custom_runtime]: crate::guide::examples::custom_runtime
[LogSink]: crate::sink::LogSink
[Runtime]: crate::runtime::Runtime
[SinkHarness]: crate::conformance::SinkHarness
[RuntimeHarness]: crate::conformance::RuntimeHarness
",
    doc = include_str!("../docs/integrating.md")
)]
#[cfg_attr(
    not(all(feature = "docker", feature = "testing", feature = "conformance")),
    doc = "Requires the features `docker`, `testing` and `conformance`."
)]
pub mod integrating {}

#[cfg_attr(
    all(feature = "docker", feature = "blocking"),
    doc = "
[integrating]: crate::guide::integrating
[in_tests]: crate::guide::examples::in_tests
",
    doc = include_str!("../docs/testing.md")
)]
#[cfg_attr(
    not(all(feature = "docker", feature = "blocking")),
    doc = "Requires the features `docker` and `blocking`."
)]
pub mod testing {}

/// [kubernetes]: crate::guide::kubernetes
///
#[doc = include_str!("../docs/ci.md")]
pub mod ci {}

/// [kubernetes]: crate::guide::kubernetes
///
#[doc = include_str!("../docs/engines.md")]
pub mod engines {}

#[cfg_attr(
    feature = "kube",
    doc = "
[ci]: crate::guide::ci
[engines]: crate::guide::engines
[scale]: crate::guide::scale
",
    doc = include_str!("../docs/kubernetes.md")
)]
#[cfg_attr(not(feature = "kube"), doc = "Requires the feature `kube`.")]
pub mod kubernetes {}

/// [custom_sink]: crate::guide::examples::custom_sink
/// [ssh]: crate::guide::engines#an-engine-through-ssh
///
#[doc = include_str!("../docs/scale.md")]
pub mod scale {}

#[doc = include_str!("../docs/audit-format.md")]
pub mod audit_format {}

/// [audit_format]: crate::guide::audit_format
/// [trust]: crate::guide::trust
///
#[doc = include_str!("../docs/ledger-format.md")]
pub mod ledger_format {}

/// [digest]: crate::guide::audit_format#the-digest
/// [guarantees]: crate::guide::guarantees
/// [head]: crate::guide::ledger_format#the-head
/// [ledger_format]: crate::guide::ledger_format
/// [signature]: crate::guide::audit_format#the-signature
///
#[doc = include_str!("../docs/trust.md")]
pub mod trust {}

/// [ci]: crate::guide::ci
/// [kubernetes]: crate::guide::kubernetes
///
#[doc = include_str!("../docs/guarantees.md")]
pub mod guarantees {}

/// The source of the smaller examples.
pub mod examples {
    /// Runs one command and prints its output, its outcome, and the path of its log.
    ///
    #[doc = concat!("~~~~rust,ignore\n", include_str!("../examples/quickstart.rs"), "~~~~")]
    pub mod quickstart {}

    /// Containers that live as long as a test.
    ///
    #[doc = concat!("~~~~rust,ignore\n", include_str!("../examples/in_tests.rs"), "~~~~")]
    pub mod in_tests {}

    /// A custom sink, which runs the conformance suite on itself.
    ///
    #[doc = concat!("~~~~rust,ignore\n", include_str!("../examples/custom_sink.rs"), "~~~~")]
    pub mod custom_sink {}

    /// A runtime that wraps another one, and runs the conformance suite on itself.
    ///
    #[doc = concat!("~~~~rust,ignore\n", include_str!("../examples/custom_runtime.rs"), "~~~~")]
    pub mod custom_runtime {}
}

#[cfg(all(doctest, feature = "process"))]
#[doc = include_str!("../README.md")]
mod readme {}
