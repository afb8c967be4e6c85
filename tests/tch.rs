//! Loads into tch's variables, by `make tch`.
#![cfg(feature = "tch")]

mod common;

use std::path::{Path, PathBuf};

use common::tensor;
use flashpack::{
    ErrorKind,
    format::{DType, layout::Order},
    load::Options,
    var_store::load_var_store,
};
use tch::{Device, Kind, Tensor, nn::VarStore};

fn packed(folder: &Path) -> (PathBuf, Vec<common::Tensor>) {
    let path = folder.join("model.flashpack");
    let tensors = vec![
        tensor("fc.weight", DType::Float32, &[5, 3]),
        tensor("fc.bias", DType::Float32, &[5]),
        tensor("half", DType::Bfloat16, &[7]),
        tensor("scalar", DType::Float64, &[]),
        tensor("empty", DType::Float32, &[0, 4]),
        tensor("unused", DType::Int64, &[2]),
    ];
    common::pack(&path, &tensors, Order::LargestFirst, 128).unwrap();
    (path, tensors)
}

fn variables(store: &VarStore, named: &[(&str, &[i64], Kind)]) -> Vec<Tensor> {
    let root = store.root();
    named
        .iter()
        .map(|(name, shape, kind)| {
            name.rsplit_once('.').map_or_else(|| root.clone(), |(parent, _)| &root / parent).add(
                name.rsplit('.').next().unwrap(),
                Tensor::zeros(*shape, (*kind, Device::Cpu)),
                false,
            )
        })
        .collect()
}

fn bytes(variable: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; variable.numel() * variable.kind().elt_size_in_bytes()];
    variable.copy_data_u8(&mut bytes, variable.numel());
    bytes
}

#[test]
fn variables_get_the_files_bytes_and_keep_their_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (path, tensors) = packed(folder.path());
    for eager in [None, Some(true)] {
        let store = VarStore::new(Device::Cpu);
        let variables = variables(
            &store,
            &[
                ("fc.weight", &[5, 3], Kind::Float),
                ("fc.bias", &[5], Kind::Float),
                ("half", &[7], Kind::BFloat16),
                ("scalar", &[], Kind::Double),
                ("empty", &[0, 4], Kind::Float),
            ],
        );
        let places: Vec<_> = variables.iter().map(Tensor::data_ptr).collect();
        load_var_store(&path, &store, Options { eager, ..Options::default() }).unwrap();
        for (variable, tensor) in variables.iter().zip(&tensors) {
            assert_eq!(bytes(variable), tensor.bytes, "{}", tensor.spec.name);
        }
        assert_eq!(variables.iter().map(Tensor::data_ptr).collect::<Vec<_>>(), places);
    }
}

#[test]
fn nothing_changes_unless_everything_fits() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = packed(folder.path());
    for (name, shape, kind) in [
        ("fc.bias", &[4][..], Kind::Float),
        ("fc.bias", &[5][..], Kind::Double),
        ("nobody", &[5][..], Kind::Float),
    ] {
        let store = VarStore::new(Device::Cpu);
        let variables = variables(&store, &[("fc.weight", &[5, 3], Kind::Float), (name, shape, kind)]);
        let error = load_var_store(&path, &store, Options::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Argument);
        assert!(error.to_string().contains(name), "{error}");
        assert!(bytes(&variables[0]).iter().all(|&byte| byte == 0));
    }
}
