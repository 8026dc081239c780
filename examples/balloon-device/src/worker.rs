//! The device on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};

use crate::device::Device;
use crate::front::Front;

/// What is to be done with the device between two requests.
type Order = Box<dyn FnOnce(&mut Device) + Send>;

/// A running device.
#[derive(Debug)]
pub struct Worker {
    front: Arc<Front>,
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn start(front: Arc<Front>, mut device: Device) -> Result<Self> {
        let (orders, inbox) = channel();
        let own = Arc::clone(&front);
        let thread = std::thread::Builder::new()
            .name("device".into())
            .spawn(move || run(&own, &mut device, &inbox))?;
        Ok(Self {
            front,
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Has the device's thread do something, and waits for its answer.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Device) -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = channel();
        let order: Order = Box::new(move |device| {
            // Who asked may have gone.
            let _ = reply.send(what(device));
        });
        let orders = self.orders.as_ref().context("the device is gone")?;
        orders.send(order).ok().context("the device is gone")?;
        self.front.kick.set();
        answer.recv().context("the device is gone")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        self.front.kick.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(front: &Front, device: &mut Device, inbox: &Receiver<Order>) {
    use std::sync::mpsc::TryRecvError;
    loop {
        front.kick.wait(None);
        loop {
            match inbox.try_recv() {
                Ok(order) => order(device),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return,
            }
        }
        device.serve();
    }
}
