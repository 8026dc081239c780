//! Memory for allocators that need pointers to what they manage.

use std::sync::atomic::{AtomicBool, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Address space for frames, aligned to 1 GiB; backed by the host as it is touched.
pub(crate) struct Pool {
    raw: *mut core::ffi::c_void,
    len: usize,
    pub(crate) base: usize,
    pub(crate) frames: u64,
}

pub(crate) const GIB: usize = 1 << 30;

/// Whether pools made from now on have pages of 4 KiB.
pub(crate) static SMALL_PAGES: AtomicBool = AtomicBool::new(false);

impl Pool {
    pub(crate) fn new(frames: u64) -> Self {
        let len = ((frames as usize) << 12) + GIB;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let raw = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }.unwrap();
        // Huge pages would hide which frames are touched, where that is asked.
        let advice = if SMALL_PAGES.load(Ordering::Relaxed) {
            rustix::mm::Advice::LinuxNoHugepage
        } else {
            rustix::mm::Advice::LinuxHugepage
        };
        let _ = unsafe { rustix::mm::madvise(raw, len, advice) };
        let base = raw.expose_provenance().next_multiple_of(GIB);
        Self {
            raw,
            len,
            base,
            frames,
        }
    }

    /// How many frames are resident.
    pub(crate) fn resident(&self) -> u64 {
        let pagemap = std::fs::read("/proc/self/smaps").unwrap_or_default();
        let text = String::from_utf8_lossy(&pagemap);
        let start = format!("{:x}-", self.raw.addr());
        let own = text.lines().skip_while(|line| !line.starts_with(&start));
        let rss = own.into_iter().find_map(|line| line.strip_prefix("Rss:"));
        let kib = rss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) / 4
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        unsafe { munmap(self.raw, self.len) }.unwrap();
    }
}

unsafe impl Sync for Pool {}
unsafe impl Send for Pool {}
