package faultdisk

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a file or folder of a disk. It asks the disk before each change.
type node struct {
	*fs.LoopbackNode
	disk *Disk
}

// WrapChild makes what is found or made below a node a node as well.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{ops.(*fs.LoopbackNode), n.disk}
}

// change is asked before a change that is no write: of a name, a size, a folder.
func (d *Disk) change() syscall.Errno {
	switch Mode(d.mode.Load()) {
	case ReadOnly:
		return d.refuse(syscall.EROFS)
	case FailWrites:
		return d.refuse(syscall.EIO)
	}
	return 0
}

func (d *Disk) refuse(e syscall.Errno) syscall.Errno {
	d.refused.Add(1)
	return e
}

func (d *Disk) write() syscall.Errno {
	if Mode(d.mode.Load()) == Slow {
		time.Sleep(slowness)
	}
	return d.change()
}

func (d *Disk) sync() syscall.Errno {
	switch Mode(d.mode.Load()) {
	case Slow:
		time.Sleep(slowness)
	case FailSyncs, FailWrites, ReadOnly:
		return d.refuse(syscall.EIO)
	}
	return 0
}

// Setattr implements fs.NodeSetattrer.
func (n *node) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if e := n.disk.change(); e != 0 {
		return e
	}
	return n.LoopbackNode.Setattr(ctx, f, in, out)
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode,
	fs.FileHandle, uint32, syscall.Errno) {
	if e := n.disk.change(); e != 0 {
		return nil, nil, 0, e
	}
	inode, f, opened, e := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, n.disk.file(f, e), opened, e
}

// Mkdir implements fs.NodeMkdirer.
func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if e := n.disk.change(); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Mkdir(ctx, name, mode, out)
}

// Rmdir implements fs.NodeRmdirer.
func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	if e := n.disk.change(); e != 0 {
		return e
	}
	return n.LoopbackNode.Rmdir(ctx, name)
}

// Unlink implements fs.NodeUnlinker.
func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if e := n.disk.change(); e != 0 {
		return e
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string,
	flags uint32) syscall.Errno {
	if e := n.disk.change(); e != 0 {
		return e
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

// Link implements fs.NodeLinker.
func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode,
	syscall.Errno) {
	if e := n.disk.change(); e != 0 {
		return nil, e
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

// Open implements fs.NodeOpener: one that is to write is refused where nothing may be
// written.
func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY && Mode(n.disk.mode.Load()) == ReadOnly {
		return nil, 0, n.disk.refuse(syscall.EROFS)
	}
	f, opened, e := n.LoopbackNode.Open(ctx, flags)
	return n.disk.file(f, e), opened, e
}
