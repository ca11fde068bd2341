//! `Arc<dyn Runtime>` implements [`Runtime`].

use std::sync::Arc;

use async_trait::async_trait;

use super::{
    Archive, AttachedOutput, Capabilities, Connection, Continuity, CreateRequest, Created,
    EngineInfo, ExecId, ExecInspection, ImageInfo, InputWriter, Inspection, LabeledContainer,
    LabeledResource, LogsRequest, OutputStream, OwnedContainer, ResourceRequest, Runtime,
    StartedExec, WaitStatus,
};
use crate::error::{Result, RuntimeError};
use crate::outcome::Usage;
use crate::spec::{ContainerId, ExecSpec, InvalidSpec, ResourceKind, RootId, RunSpec, WindowSize};

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<R: Runtime + ?Sized> Runtime for Arc<R> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn host(&self) -> String {
        (**self).host()
    }

    async fn engine(&self) -> Result<EngineInfo, RuntimeError> {
        (**self).engine().await
    }

    fn validate(&self, spec: &RunSpec) -> Result<(), InvalidSpec> {
        (**self).validate(spec)
    }

    async fn prepare(&self, spec: &RunSpec) -> Result<(), RuntimeError> {
        (**self).prepare(spec).await
    }

    async fn create(&self, request: CreateRequest<'_>) -> Result<Created, RuntimeError> {
        (**self).create(request).await
    }

    async fn place(&self, container: &ContainerId, spec: &RunSpec) -> Result<(), RuntimeError> {
        (**self).place(container, spec).await
    }

    async fn attach(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<AttachedOutput, RuntimeError> {
        (**self).attach(container, tty).await
    }

    async fn attach_running(
        &self,
        container: &ContainerId,
        tty: bool,
    ) -> Result<OutputStream, RuntimeError> {
        (**self).attach_running(container, tty).await
    }

    async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        (**self).start(container).await
    }

    async fn wait(&self, container: &ContainerId) -> Result<WaitStatus, RuntimeError> {
        (**self).wait(container).await
    }

    async fn inspect(&self, container: &ContainerId) -> Result<Inspection, RuntimeError> {
        (**self).inspect(container).await
    }

    async fn continuity(&self, container: &ContainerId) -> Result<Continuity, RuntimeError> {
        (**self).continuity(container).await
    }

    async fn stats(&self, container: &ContainerId) -> Result<Usage, RuntimeError> {
        (**self).stats(container).await
    }

    async fn logs(
        &self,
        container: &ContainerId,
        request: LogsRequest,
    ) -> Result<OutputStream, RuntimeError> {
        (**self).logs(container, request).await
    }

    async fn log_has_exactly(
        &self,
        container: &ContainerId,
        tty: bool,
        records: u64,
    ) -> Result<bool, RuntimeError> {
        (**self).log_has_exactly(container, tty, records).await
    }

    async fn stdin(&self, container: &ContainerId) -> Result<InputWriter, RuntimeError> {
        (**self).stdin(container).await
    }

    async fn resize(&self, container: &ContainerId, size: WindowSize) -> Result<(), RuntimeError> {
        (**self).resize(container, size).await
    }

    async fn exec(
        &self,
        container: &ContainerId,
        spec: &ExecSpec,
    ) -> Result<StartedExec, RuntimeError> {
        (**self).exec(container, spec).await
    }

    async fn exec_inspect(&self, exec: &ExecId) -> Result<ExecInspection, RuntimeError> {
        (**self).exec_inspect(exec).await
    }

    async fn exec_kill(&self, container: &ContainerId, exec: &ExecId) -> Result<(), RuntimeError> {
        (**self).exec_kill(container, exec).await
    }

    async fn exec_resize(&self, exec: &ExecId, size: WindowSize) -> Result<(), RuntimeError> {
        (**self).exec_resize(exec, size).await
    }

    async fn create_resource(&self, request: ResourceRequest<'_>) -> Result<(), RuntimeError> {
        (**self).create_resource(request).await
    }

    async fn remove_resource(&self, kind: ResourceKind, name: &str) -> Result<(), RuntimeError> {
        (**self).remove_resource(kind, name).await
    }

    async fn find_resources(&self) -> Result<Vec<LabeledResource>, RuntimeError> {
        (**self).find_resources().await
    }

    async fn signal(&self, container: &ContainerId, signal: &str) -> Result<(), RuntimeError> {
        (**self).signal(container, signal).await
    }

    async fn remove(&self, container: &ContainerId, force: bool) -> Result<(), RuntimeError> {
        (**self).remove(container, force).await
    }

    async fn find(&self, root: &RootId) -> Result<Vec<OwnedContainer>, RuntimeError> {
        (**self).find(root).await
    }

    async fn find_all(&self) -> Result<Vec<LabeledContainer>, RuntimeError> {
        (**self).find_all().await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        (**self).images().await
    }

    async fn image_inspect(&self, image: &str) -> Result<ImageInfo, RuntimeError> {
        (**self).image_inspect(image).await
    }

    async fn image_remove(&self, image: &str, force: bool) -> Result<(), RuntimeError> {
        (**self).image_remove(image, force).await
    }

    async fn copy_out(&self, container: &ContainerId, path: &str) -> Result<Archive, RuntimeError> {
        (**self).copy_out(container, path).await
    }

    async fn copy_in(
        &self,
        container: &ContainerId,
        path: &str,
        archive: Archive,
    ) -> Result<(), RuntimeError> {
        (**self).copy_in(container, path, archive).await
    }

    async fn connect(
        &self,
        container: &ContainerId,
        port: u16,
    ) -> Result<Connection, RuntimeError> {
        (**self).connect(container, port).await
    }
}
