//! The device as a vhost-user back end, for a front end that lets it stand in for
//! a device of its own.
//!
//! The front end keeps queues and memory; both are lent to the [`Device`] for each
//! kick, and again for as long as a guest refills them: no turn is without end. The
//! `vhost` crate has no message by which a back end says that its configuration has
//! changed, so the driver has to look for its target
//! ([`DriverOptions::polled`](transport_virtio::DriverOptions::polled)), and the front end has to pass
//! each look on.

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Result, anyhow};
use transport_virtio::{DeviceStatus, Features, Handshake as _, QueueId};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT as _};
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::device::{Device, Options};
use crate::front::{Front, QUEUE_SIZE, Registers};
use crate::ram::Ram;

/// A device whose queues and memory are the front end's.
#[derive(Debug)]
pub struct Backend {
    device: Device,
    front: Arc<Front>,
    features: Features,
}

/// The event by which the device kicks itself: beyond those of queues and exit.
const AGAIN: usize = QueueId::COUNT + 1;

/// A back end that may be looked into while it is served.
pub type Shared = Arc<RwLock<Backend>>;

impl Backend {
    /// A device with these options and no memory so far.
    ///
    /// # Errors
    /// If the host lacks what a front needs.
    pub fn new(front: Arc<Front>, options: Options) -> Result<Self> {
        let nothing = Arc::new(Ram::mapped(GuestMemoryMmap::new())?);
        Ok(Self {
            device: Device::new(Arc::clone(&front), nothing, options),
            front,
            features: options.features(),
        })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &Device {
        &self.device
    }

    /// Serves one front end at `socket` until it hangs up.
    ///
    /// # Errors
    /// If there can be no socket, or the front end does not keep to the protocol.
    pub fn serve(backend: &Shared, socket: &Path) -> Result<()> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let name = String::from("balloon");
        let daemon = VhostUserDaemon::new(name, Arc::clone(backend), memory);
        let mut daemon = daemon.map_err(|error| anyhow!("{error}"))?;
        let own = backend.read().unwrap_or_else(PoisonError::into_inner);
        for thread in daemon.get_epoll_handlers() {
            let kick = own.front.kick.as_raw_fd();
            thread.register_listener(kick, EventSet::IN, AGAIN as u64)?;
        }
        drop(own);
        let served = daemon.serve(socket);
        served.map_err(|error| anyhow!("{error}"))
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        QueueId::COUNT
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        self.features.bits() | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&mut self, features: u64) {
        let mut registers = Registers(Arc::clone(&self.front));
        registers.accept_features(Features::from_bits_retain(features));
        // Queues are started one by one: those not ready are not served.
        registers.set_status(DeviceStatus::DRIVER_OK);
        self.device.forget();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, _: bool) {
        // Part of each queue's state.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let words = (0..16_u16).step_by(4);
        let space: Vec<u8> = words
            .flat_map(|at| self.front.config(at).to_le_bytes())
            .collect();
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = first.saturating_add(usize::try_from(size).unwrap_or(usize::MAX));
        space
            .get(first..end)
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        use transport_virtio::ConfigIo as _;
        let place = u16::try_from(offset).ok().zip(bytes.try_into().ok());
        let (offset, word) = place.ok_or(io::ErrorKind::InvalidInput)?;
        Registers(Arc::clone(&self.front)).write_config(offset, u32::from_le_bytes(word));
        Ok(())
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let memory = GuestMemoryMmap::clone(&memory.memory());
        let ram = Ram::mapped(memory).map_err(io::Error::other)?;
        self.device.set_ram(Arc::new(ram));
        Ok(())
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without, the thread that waits for kicks is never joined.
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _: EventSet,
        vrings: &[VringRwLock],
        _: usize,
    ) -> io::Result<()> {
        if usize::from(event) == AGAIN {
            self.front.kick.wait(Some(Duration::ZERO));
        }
        let states = vrings
            .iter()
            .map(|vring| vring.get_ref().get_queue().state());
        let queues: Result<Vec<Queue>, _> = states.map(Queue::try_from).collect();
        let queues = queues.map_err(io::Error::other)?;
        let mut queues: [Queue; QueueId::COUNT] = queues
            .try_into()
            .map_err(|_| io::Error::other("as many queues as a balloon has"))?;
        let answered = self.front.interrupts();
        self.device.serve_lent(&mut queues);
        let interrupt = self.front.interrupts() != answered;
        for (vring, queue) in vrings.iter().zip(&queues) {
            let mut vring = vring.get_mut();
            let kept = vring.get_queue_mut();
            kept.set_next_avail(queue.next_avail());
            let used = kept.next_used() != queue.next_used();
            kept.set_next_used(queue.next_used());
            if used && interrupt {
                vring.signal_used_queue()?;
            }
        }
        Ok(())
    }
}
