//! The road to the host, as the engine sees it: I/O and nothing else.
//!
//! Implemented by `transport-virtio` over virtqueues, by `transport-xen` over
//! hypercalls, and by the scripted fake behind `test-utils`. A transport keeps
//! no account of frames and makes no decision about them.

use crate::slots::Request;
use core::fmt;

use crate::slots::Completer;

use crate::status::Blocked;
use crate::units::{FrameCount, Order, Pfn};

/// What one request over a path may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames of one request.
    pub frames: FrameCount,
    /// Runs of one request.
    pub runs: usize,
    /// Frames of one run.
    pub run: FrameCount,
    /// Requests in flight at once.
    pub in_flight: usize,
    /// Only frames below this one.
    pub below: Pfn,
}

impl Limits {
    /// Whether there are requests that hold a block of `order`.
    pub(crate) fn hold(&self, order: Order) -> bool {
        self.frames.min(self.run) >= order.frames() && self.runs > 0 && self.in_flight > 0
    }
}

/// What a transport can do, fixed once it is live.
///
/// Made by [`Capabilities::new`], then field by field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Giving frame by frame.
    pub inflate: Limits,
    /// Giving whole ranges, where the host allows it.
    pub bulk: Option<Limits>,
    /// Taking back frames given by [`Via::Inflate`](crate::Via::Inflate).
    pub deflate: Limits,
    /// Whether the host announces a changed target and answered requests by
    /// interrupt; if not, the engine asks to be stepped by the clock.
    pub interrupts: bool,
    /// The block size the host maps the guest in and loses when a part is
    /// given; [`Order::FRAME`] if it does not matter.
    pub unit: Order,
    /// Whether frames may not be used again before the host acknowledged their
    /// return.
    #[doc(alias = "VIRTIO_BALLOON_F_MUST_TELL_HOST")]
    pub must_tell_host: bool,
    /// Whether the host agrees to frames returning against the target when
    /// memory is short.
    #[doc(alias = "VIRTIO_BALLOON_F_DEFLATE_ON_OOM")]
    pub deflate_on_oom: bool,
    /// Whether to give those frames first that hold nothing of the guest's, and not those
    /// the host has populated: see [`TakeRequest::unpopulated_first`](crate::TakeRequest::unpopulated_first).
    pub unpopulated_first: bool,
}

impl Capabilities {
    /// Giving and taking back frame by frame, with interrupts and nothing else.
    #[must_use]
    pub const fn new(inflate: Limits, deflate: Limits) -> Self {
        Self {
            inflate,
            bulk: None,
            deflate,
            interrupts: true,
            unit: Order::FRAME,
            must_tell_host: true,
            deflate_on_oom: false,
            unpopulated_first: false,
        }
    }
}

/// I/O to one balloon device or hypervisor.
///
/// Laws, checked by `testing::check_transport_laws`:
/// * a failed `submit` left nothing with the host: the frames are the guest's;
/// * each submitted request is completed at most once, by `reap` or at once by
///   `submit` itself (a hypercall);
/// * no call waits for the host, and each does bounded work.
pub trait Transport {
    /// What can go wrong.
    type Error: TransportError;

    /// What this transport can do.
    fn capabilities(&self) -> Capabilities;

    /// The balloon size the host wants, in frames.
    ///
    /// Not yet clamped: a host may ask for more than there is.
    ///
    /// # Errors
    /// When the host cannot be asked, or its answer kept changing under us.
    fn read_target(&mut self) -> Result<FrameCount, Self::Error>;

    /// Publishes the balloon's size.
    ///
    /// # Errors
    /// When the host cannot be told.
    #[doc(alias = "actual")]
    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error>;

    /// Hands over a request; the host may not have seen it before
    /// [`kick`](Self::kick). A synchronous transport completes it right here.
    ///
    /// # Errors
    /// The host has not seen the request and never will.
    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error>;

    /// Makes submitted requests visible, and asks for a signal once
    /// `wake_after` of the requests of each kind in flight are answered, or earlier.
    ///
    /// Returns whether that many are answered already, in which case no signal
    /// may come.
    ///
    /// # Errors
    /// When the host cannot be reached; requests stay in flight.
    fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error>;

    /// Tells the host once more of all requests in flight, whosever they are and
    /// whatever it asked to be told: a notification may have been lost, with a host
    /// that was paused, restored, or replaced.
    ///
    /// Nothing to do where a request cannot go unseen.
    ///
    /// # Errors
    /// When the host cannot be reached; requests stay in flight.
    fn notify(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// The engine now gives frames in blocks of `unit`: after a downgrade to
    /// 4 KiB, or an upgrade back.
    ///
    /// A transport that can tell its host does (Xen: a xenstore node).
    ///
    /// # Errors
    /// When the host cannot be told; the engine goes on, and tries again later.
    fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
        let _ = unit;
        Ok(())
    }

    /// Completes the slots of answered requests, without waiting: how many.
    ///
    /// They may be anybody's who submits over this transport. A wish for a signal is
    /// used up by what is taken up here: it is renewed for the requests left, and
    /// answers that came too early for it are taken up as well.
    ///
    /// Looks at a bounded number of answers. Those that make no sense (unknown,
    /// twice) are dropped and counted by the transport.
    ///
    /// # Errors
    /// When the host broke the protocol beyond repair.
    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error>;
}

/// What went wrong, whatever the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TransportErrorKind {
    /// No room now; an answer will make some.
    Full,
    /// The host said no to this request.
    Refused,
    /// The host lacks what it needs for this request, and each attempt costs the
    /// guest something: the next one comes after the longest pause.
    Exhausted,
    /// The transport has no such path or kind.
    Unsupported,
    /// The request exceeds the path's [`Limits`].
    TooLarge,
    /// A value kept changing while it was read.
    Unstable,
    /// The device broke the protocol; only a reset helps.
    Broken,
    /// The device has failed and asks for a reset.
    NeedsReset,
    /// Nobody seems to be there: the registers read as those of an empty place, as they
    /// also do while a device is moved or asleep. The target is read again after a second,
    /// and a device that is not there then is gone.
    Absent,
    /// There is no device any more: none that could still write to a frame.
    Gone,
}

impl TransportErrorKind {
    /// What stands between balloon and host from now on, if the host is not to be
    /// asked again.
    pub(crate) const fn end(self) -> Option<Blocked> {
        match self {
            Self::Broken => Some(Blocked::DeviceBroken),
            Self::NeedsReset => Some(Blocked::DeviceNeedsReset),
            Self::Gone => Some(Blocked::DeviceGone),
            _ => None,
        }
    }
}

impl fmt::Display for TransportErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "no room for another request now",
            Self::Refused => "the host refused the request",
            Self::Exhausted => "the host lacks what it needs for the request",
            Self::Unsupported => "the transport does not offer this",
            Self::TooLarge => "the request exceeds the limits of its path",
            Self::Unstable => "the host kept changing the value while it was read",
            Self::Broken => "the device broke the protocol and needs a reset",
            Self::NeedsReset => "the device asks for a reset",
            Self::Absent => "nobody seems to be there",
            Self::Gone => "the device is gone",
        })
    }
}

/// An error of a transport that says which kind it is.
pub trait TransportError: fmt::Debug {
    /// The kind the engine decides by.
    fn kind(&self) -> TransportErrorKind;
}

impl TransportError for TransportErrorKind {
    fn kind(&self) -> TransportErrorKind {
        *self
    }
}

impl<T: Transport + ?Sized> Transport for &mut T {
    type Error = T::Error;

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn read_target(&mut self) -> Result<FrameCount, Self::Error> {
        (**self).read_target()
    }

    fn write_actual(&mut self, size: FrameCount) -> Result<(), Self::Error> {
        (**self).write_actual(size)
    }

    fn submit(&mut self, request: Request<'_>, done: Completer<'_>) -> Result<(), Self::Error> {
        (**self).submit(request, done)
    }

    fn kick(&mut self, wake_after: usize) -> Result<bool, Self::Error> {
        (**self).kick(wake_after)
    }

    fn notify(&mut self) -> Result<(), Self::Error> {
        (**self).notify()
    }

    fn announce_unit(&mut self, unit: Order) -> Result<(), Self::Error> {
        (**self).announce_unit(unit)
    }

    fn reap(&mut self, done: Completer<'_>) -> Result<usize, Self::Error> {
        (**self).reap(done)
    }
}
