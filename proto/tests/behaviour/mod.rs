mod birth;
mod failsafe;
mod following;
mod lost_etcd;
mod members;
mod pause;
mod scene;
mod slots;
