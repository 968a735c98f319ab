//! Compile-time checks that public types are `Send` and `Sync`.

use hvsock_fabric::{
    AddPartitionError, Audience, Check, ConnectRequest, Connection, ConnectionEnd, ConnectionId,
    Destination, Effect, Explanation, ExplanationStep, Fabric, FabricSnapshot, Fix, Limits,
    ListenRequest, Listener, ListenerId, NotOperator, Operators, Partition, PartitionError,
    PartitionKey, PartitionKeySnapshot, PartitionKind, PartitionSpec, PartitionState, Refusal,
    RegisterError, RootSpec, Route, SnapshotError, Verdict,
};

const fn assert_send_sync<T: Send + Sync>() {}

#[test]
fn public_types_are_send_and_sync() {
    const {
        assert_send_sync::<Fabric>();
        assert_send_sync::<Limits>();
        assert_send_sync::<Partition>();
        assert_send_sync::<PartitionKind>();
        assert_send_sync::<PartitionSpec>();
        assert_send_sync::<PartitionState>();
        assert_send_sync::<RootSpec>();
        assert_send_sync::<PartitionKey>();
        assert_send_sync::<ListenerId>();
        assert_send_sync::<ConnectionId>();
        assert_send_sync::<Listener>();
        assert_send_sync::<Connection>();
        assert_send_sync::<ConnectRequest<'_>>();
        assert_send_sync::<ListenRequest<'_>>();
        assert_send_sync::<Destination>();
        assert_send_sync::<Route>();
        assert_send_sync::<ConnectionEnd>();
        assert_send_sync::<Effect>();
        assert_send_sync::<Check>();
        assert_send_sync::<Explanation>();
        assert_send_sync::<Fix>();
        assert_send_sync::<NotOperator>();
        assert_send_sync::<Operators>();
        assert_send_sync::<ExplanationStep>();
        assert_send_sync::<Verdict>();
        assert_send_sync::<Audience>();
        assert_send_sync::<Refusal>();
        assert_send_sync::<AddPartitionError>();
        assert_send_sync::<PartitionError>();
        assert_send_sync::<RegisterError>();
        assert_send_sync::<FabricSnapshot>();
        assert_send_sync::<PartitionKeySnapshot>();
        assert_send_sync::<SnapshotError>();
    }
}
