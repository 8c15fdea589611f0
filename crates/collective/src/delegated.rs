//! Groups over other groups.

/// All of [`Group`](crate::Group) but what it counts, as another group does it: `own => own.inner`, where `own` is the group itself.
macro_rules! delegated {
    ($own:ident => $inner:expr) => {
        fn rank(&self) -> usize {
            let $own = self;
            ($inner).rank()
        }

        fn size(&self) -> usize {
            let $own = self;
            ($inner).size()
        }

        fn all_gather_host(&self, part: &[f32]) -> Result<Vec<Vec<f32>>, $crate::CollectiveError> {
            let $own = self;
            ($inner).all_gather_host(part)
        }

        fn all_to_all_host(&self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, $crate::CollectiveError> {
            let $own = self;
            ($inner).all_to_all_host(parts)
        }

        fn broadcast(
            &self,
            bytes: &mut Vec<u8>,
            deadline: Option<std::time::Duration>,
        ) -> Result<(), $crate::CollectiveError> {
            let $own = self;
            ($inner).broadcast(bytes, deadline)
        }

        fn barrier(&self) -> Result<(), $crate::CollectiveError> {
            let $own = self;
            ($inner).barrier()
        }

        fn send_bytes(&self, bytes: &[u8], to: usize) -> Result<(), $crate::CollectiveError> {
            let $own = self;
            ($inner).send_bytes(bytes, to)
        }

        fn recv_bytes(
            &self,
            from: usize,
            deadline: Option<std::time::Duration>,
        ) -> Result<Vec<u8>, $crate::CollectiveError> {
            let $own = self;
            ($inner).recv_bytes(from, deadline)
        }

        fn try_recv_bytes(&self, from: usize) -> Result<Option<Vec<u8>>, $crate::CollectiveError> {
            let $own = self;
            ($inner).try_recv_bytes(from)
        }

        fn check(&self) -> Result<(), $crate::CollectiveError> {
            let $own = self;
            ($inner).check()
        }

        fn fail(&self, message: &str) {
            let $own = self;
            ($inner).fail(message);
        }

        fn watched(&self) -> std::sync::Arc<dyn $crate::Watched> {
            let $own = self;
            ($inner).watched()
        }
    };
}

pub(crate) use delegated;
