//! What ranks share is there before kernels of any of them wait: whom a driver makes wait for those would be waited for in vain.

use std::time::Duration;

use collective::{Collective, SharedConfig, SharedGroup, WireDType};
use cuda::{CudaDevice, CudaGroup};

mod emulated;
use emulated::Emulated;

#[test]
fn nothing_is_shared_once_kernels_may_wait_and_no_kernel_waits_before() {
    if Emulated::new(0).is_none() {
        return;
    }
    let deadline = Duration::from_secs(60);
    let config = SharedConfig { deadline, spin: Duration::ZERO, ..SharedConfig::default() };
    std::thread::scope(|scope| {
        for (rank, host) in SharedGroup::new(2, config).into_iter().enumerate() {
            scope.spawn(move || {
                let mut driver = Emulated::new(0).expect("there is a compiler");
                driver.ordinal = Some(rank as u32);
                let (shared, launches) = (driver.shared.clone(), driver.launches.clone());
                let seen = || (shared.borrow().len(), launches.borrow().len());
                let dev = CudaDevice::new(Box::new(driver));
                let group = CudaGroup::new(host, WireDType::Float32, deadline).with_slots(1 << 12);
                group.share(&dev).expect("all come");
                let (pieces, kernels) = seen();
                assert!(pieces > 0 && kernels == 0, "{pieces} pieces, {kernels} kernels");
                assert_eq!(group.prepare(&dev).expect("all come"), None);
                let (later, kernels) = seen();
                assert!(later == pieces && kernels > 0, "{later} pieces, {kernels} kernels");
                assert_eq!(group.path(), "peer memory");
            });
        }
    });
}
