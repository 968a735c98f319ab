//! Resolves the numbers that an operation was generated with: to partitions, listeners, connections and
//! addresses that the model has when the operation's turn comes.

use hvsock_address::{ServiceId, VmId};
use hvsock_fabric::PartitionKind;
use hvsock_registry::Principal;

use super::coverage::Row;
use super::model::{Model, ModelPartition};
use super::ops::{Pick, Request, Vm};

/// The id that a request of a partition addresses.
pub fn vm_id(model: &Model, from: usize, vm: Vm) -> VmId {
    let parts = &model.partitions;
    let me = &parts[from];
    let children = parts.iter().filter(|p| p.exists && p.parent == Some(from));
    let siblings = parts
        .iter()
        .filter(|p| p.exists && p.parent == me.parent && p.id != me.id);
    let nth = |n, of: Vec<&ModelPartition>| nth(n, of.len()).map_or(VmId::PARENT, |n| of[n].id);
    match vm {
        Vm::Is(id) => id,
        Vm::OwnId => me.id,
        Vm::ParentsId => parts[me.parent.unwrap_or(from)].id,
        Vm::GrandparentsId => match model.grandparent(from) {
            Some(p) => parts[p].id,
            None => VmId::PARENT,
        },
        Vm::AGrandchilds(n) => {
            let below = |p: &ModelPartition| p.parent.and_then(|p| parts[p].parent) == Some(from);
            nth(n, parts.iter().filter(|p| p.exists && below(p)).collect())
        }
        Vm::AChilds(n) => nth(n, children.collect()),
        Vm::ASiblings(n) => nth(n, siblings.collect()),
        Vm::OfPartition(n) => nth(n, parts.iter().collect()),
    }
}

/// The partition that was drawn, among all or among the existing ones that fit.
pub fn pick(model: &Model, drawn: Pick, fits: impl Fn(&ModelPartition) -> bool) -> usize {
    let parts = &model.partitions;
    match drawn {
        Pick::Any(n) => n % parts.len(),
        Pick::Fitting(n) => {
            let fitting = (0..parts.len()).filter(|p| parts[*p].exists && fits(&parts[*p]));
            let fitting: Vec<_> = fitting.collect();
            nth(n, fitting.len()).map_or(0, |n| fitting[n])
        }
    }
}

/// A partition that has a registry.
pub fn owner(model: &Model, drawn: Pick) -> usize {
    pick(model, drawn, |p| p.kind != PartitionKind::Container)
}

/// A connect that this listener might accept, from one of the partitions related to its own.
pub fn request_to(model: &Model, listener: usize, from: usize, who: Principal) -> Option<Request> {
    let existing = model.listeners.iter().filter(|l| l.exists);
    let existing: Vec<_> = existing.collect();
    let listener = existing[nth(listener, existing.len())?];
    request_into(model, listener.partition, listener.service, from, who)
}

/// A connect to a service in a partition, from one of those related to it.
pub fn request_into(
    model: &Model,
    target: usize,
    service: ServiceId,
    from: usize,
    who: Principal,
) -> Option<Request> {
    let parts = &model.partitions;
    let id = parts[target].id;
    let mut ways = vec![];
    for (p, part) in parts.iter().enumerate() {
        if !part.exists {
            continue;
        }
        if p == target {
            ways.push((p, VmId::LOOPBACK));
        } else if part.parent == Some(target) {
            ways.extend([VmId::PARENT, VmId::WILDCARD].map(|vm| (p, vm)));
            if part.kind == PartitionKind::Container {
                ways.push((p, VmId::SILOHOST));
            }
        } else if parts[target].parent == Some(p)
            || model.in_one_group(p, target)
            || model.grandparent(p) == Some(target)
            || model.grandparent(target) == Some(p)
        {
            ways.push((p, id));
        }
    }
    let (from, vm) = ways[nth(from, ways.len())?];
    Some(Request {
        from: Pick::Any(from),
        who,
        vm: Vm::Is(vm),
        service,
    })
}

/// The row of the address table for a request. `None` if it is refused before the address is
/// resolved.
pub fn row(model: &Model, from: usize, vm: VmId, service: ServiceId) -> Option<Row> {
    let me = &model.partitions[from];
    if !me.exists || service == ServiceId::ZERO || model.outer == Some(from) {
        return None;
    }
    let container = me.kind == PartitionKind::Container;
    let parent = me.parent.map(|p| model.partitions[p].kind);
    Some(match vm {
        VmId::WILDCARD if parent.is_none() => Row::WildcardInRoot,
        VmId::WILDCARD => Row::Wildcard,
        VmId::PARENT => match parent {
            None => Row::ParentOfRoot,
            Some(PartitionKind::Vm) => Row::ParentVm,
            Some(_) => Row::Parent,
        },
        VmId::CHILDREN if container => Row::ChildrenOfContainer,
        VmId::CHILDREN => Row::Children,
        VmId::LOOPBACK => Row::Loopback,
        VmId::BROADCAST => Row::Broadcast,
        VmId::SILOHOST if !container => Row::SilohostOutsideContainer,
        VmId::SILOHOST => match parent {
            // A fabric whose root is a container does not contain the host.
            None => Row::ParentOfRoot,
            Some(PartitionKind::Vm) => Row::SilohostVm,
            Some(_) => Row::SilohostHost,
        },
        id => {
            let all = &model.partitions;
            match all.iter().position(|p| p.exists && p.id == id) {
                None if me.parent.is_none() => Row::UnknownIdInRoot,
                None => Row::UnknownId,
                Some(p) if p == from => Row::OwnId,
                Some(p) if me.parent == Some(p) && model.outer == Some(p) => Row::OutersId,
                Some(p) if me.parent == Some(p) => Row::ParentsId,
                Some(p) if all[p].parent == Some(from) => Row::ChildsId,
                Some(p) if model.grandparent(p) == Some(from) => Row::GrandchildsId,
                Some(p) if model.grandparent(from) == Some(p) => match p {
                    0 => Row::GrandparentsId,
                    _ => Row::GrandparentsIdOuter,
                },
                Some(p) if model.in_one_group(from, p) => Row::SiblingsIdInOneGroup,
                Some(p) if all[p].parent == me.parent => Row::SiblingsIdInNoGroup,
                Some(_) => Row::UnrelatedId,
            }
        }
    })
}

/// A connection, mostly an existing one.
pub fn connection(model: &Model, n: usize) -> Option<usize> {
    live(n, model.connections.iter().map(|one| one.exists))
}

/// A listener, mostly an existing one.
pub fn listener(model: &Model, n: usize) -> Option<usize> {
    live(n, model.listeners.iter().map(|one| one.exists))
}

/// The nth of those that exist; one in eight times the nth of all.
fn live(n: usize, existing: impl ExactSizeIterator<Item = bool> + Clone) -> Option<usize> {
    if n % 8 == 7 {
        return nth(n, existing.len());
    }
    let mut live = existing
        .clone()
        .enumerate()
        .filter(|(_, existing)| *existing);
    let len = existing.filter(|existing| *existing).count();
    live.nth(nth(n, len)?).map(|(at, _)| at)
}

pub fn nth(n: usize, len: usize) -> Option<usize> {
    n.checked_rem(len)
}
