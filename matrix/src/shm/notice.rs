//! What the reactor does about the agent's notices.

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::agent::{Command, ConnectionName, Notice, Wire};
use super::connection::Link;
use super::doorbell_data;
use super::state::{Expecting, Export, State};
use crate::memory::Memory;
use crate::provider::{BrokenReason, Event, PrivateData, RefusedReason, RegionHandle, RemoteAccess, RequestId, ViId};
use crate::vi_state::ViEvent;

impl State {
    pub(super) fn notice(&mut self, notice: Notice, epoll: &Epoll) {
        match notice {
            Notice::Requested { connection, discriminator, reliability, private_data } => {
                if self.listeners.contains(&discriminator) {
                    self.requests.insert(connection, reliability);
                    self.event(Event::Requested { request: RequestId(connection), discriminator, private_data });
                } else {
                    let (why, private_data) = (RefusedReason::NoListener, PrivateData::new());
                    self.command(Command::Refuse { connection, why, private_data });
                }
            }
            Notice::RequestGone { connection } => {
                self.requests.remove(&connection);
            }
            Notice::Ready { connection, vi, wire, private_data } => {
                self.ready(connection, vi, *wire, private_data, epoll);
            }
            Notice::Refused { vi, why, private_data } => {
                let next = self.vis.get(vi.0).and_then(|vi| vi.state.step(ViEvent::Refused));
                if let (Some(next), Some(there)) = (next, self.vis.get_mut(vi.0)) {
                    there.state = next;
                    self.status.close_vi(vi);
                    self.event(Event::Refused { vi, why, private_data });
                }
            }
            Notice::Exported { vi, region, memory, access } => {
                let there = self.vis.get_mut(vi.0).map(|vi| (&mut vi.expecting, &mut vi.link));
                if let Some((expecting, Some(link))) = there {
                    *expecting = Expecting::No;
                    if !link.add_region(region, memory, access) {
                        self.break_vi(vi, BrokenReason::Protocol);
                    }
                }
            }
            Notice::Unexported { vi, region } => {
                let Some(there) = self.vis.get_mut(vi.0) else { return };
                if let (Some(link), Some(connection)) = (&mut there.link, there.connection) {
                    let memory = link.remove_region(region);
                    self.command(Command::Release { connection, region, memory });
                }
            }
            Notice::Released { connection, region } => {
                self.exports.retain(|export| (export.connection, export.region) != (connection, region));
            }
            Notice::Ended { vi, why } => self.break_vi(vi, why),
            Notice::Quiet { connection } => self.exports.retain(|export| export.connection != connection),
        }
    }

    /// The agents have agreed: from now on the two reactors talk.
    fn ready(&mut self, connection: ConnectionName, vi: ViId, wire: Wire, private_data: PrivateData, epoll: &Epoll) {
        let next = self.vis.get(vi.0).and_then(|vi| vi.state.step(ViEvent::Established));
        let (Some(next), Some(there)) = (next, self.vis.get_mut(vi.0)) else {
            // It was given up meanwhile.
            let (why, memories) = (BrokenReason::Disconnected, Vec::new());
            return self.command(Command::Close { connection, why, memories });
        };
        there.connection = Some(connection);
        let link = Link::new(wire, there.attributes.reliability, there.attributes.tag);
        let watched = |link: &Link| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, doorbell_data(vi));
            epoll.add(link.doorbell(), event).is_ok()
        };
        let Some(link) = link.filter(watched) else { return self.break_vi(vi, BrokenReason::Protocol) };
        there.state = next;
        there.link = Some(Box::new(link));
        self.linked.insert(vi);
        let (tag, access) = (there.attributes.tag, there.attributes.remote_access);
        let exported: Vec<(RegionHandle, Memory, RemoteAccess)> = self
            .regions
            .of_tag(tag)
            .map(|(handle, region)| (handle, region.memory.clone(), region.access.and(access)))
            .filter(|(_, _, access)| access.any())
            .collect();
        self.announce(vi, &exported);
        self.event(Event::Established { vi, private_data });
    }

    /// Gives regions to the peer of a VI.
    pub(super) fn announce(&mut self, vi: ViId, regions: &[(RegionHandle, Memory, RemoteAccess)]) {
        let there = self.vis.get_mut(vi.0).expect("a linked VI");
        let connection = there.connection.expect("a linked VI has a connection");
        let link = there.link.as_mut().expect("a linked VI");
        link.announce(u32::try_from(regions.len()).expect("tables have 16-bit places"));
        for (region, memory, access) in regions {
            let (region, memory, access) = (*region, memory.clone(), *access);
            self.exports.push(Export { connection, region, memory: memory.id(), writable: access.write });
            self.command(Command::Export { connection, region, memory, access });
        }
    }
}
