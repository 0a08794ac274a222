// Verifies a log that is laid out as C2SP tlog-tiles with Go's own sumdb packages: the signature, every tile, and proofs.
//
//	go run tiles.go FOLDER VERIFIER_KEY
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"math/rand"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Go's packages put the height of tiles into their paths, C2SP does not.
const height = 8

type files struct {
	folder string
	read   map[string]bool
}

func (f files) Height() int { return height }

func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var out [][]byte
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		data, err := os.ReadFile(filepath.Join(f.folder, path))
		if err != nil {
			return nil, err
		}
		f.read[path] = true
		out = append(out, data)
	}
	return out, nil
}

func (f files) SaveTiles([]tlog.Tile, [][]byte) {}

func check(err error, what string) {
	if err != nil {
		log.Fatalf("%s: %v", what, err)
	}
}

func main() {
	log.SetFlags(0)
	folder, key := os.Args[1], os.Args[2]
	verifier, err := note.NewVerifier(key)
	check(err, "key")
	signed, err := os.ReadFile(filepath.Join(folder, "checkpoint"))
	check(err, "checkpoint")
	opened, err := note.Open(signed, note.VerifierList(verifier))
	check(err, "checkpoint")
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		log.Fatalf("the checkpoint is of log %q", lines[0])
	}
	var size int64
	_, err = fmt.Sscan(lines[1], &size)
	check(err, "size")
	root, err := tlog.ParseHash(lines[2])
	check(err, "root")
	tree := tlog.Tree{N: size, Hash: root}
	from := files{folder, map[string]bool{}}
	hashes := tlog.TileHashReader(tree, from)

	// Every entry against its hash; reading that authenticates every tile on the way.
	var leaves []tlog.Hash
	for first := int64(0); first < size; first += 256 {
		width := size - first
		if width > 256 {
			width = 256
		}
		tile := tlog.Tile{H: height, L: -1, N: first / 256, W: int(width)}
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/data/", height), "tile/entries/", 1)
		bundle, err := os.ReadFile(filepath.Join(folder, path))
		check(err, path)
		in := bytes.NewReader(bundle)
		for i := int64(0); i < width; i++ {
			var length uint16
			check(binary.Read(in, binary.BigEndian, &length), path)
			entry := make([]byte, length)
			_, err := in.Read(entry)
			check(err, path)
			leaf := tlog.RecordHash(entry)
			stored, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, first+i)})
			check(err, path)
			if stored[0] != leaf {
				log.Fatalf("entry %d is not what its tile says", first+i)
			}
			leaves = append(leaves, leaf)
		}
		if in.Len() != 0 {
			log.Fatalf("%s has more than %d entries", path, width)
		}
	}

	random := rand.New(rand.NewSource(1))
	for i := 0; i < 100; i++ {
		index := random.Int63n(size)
		proof, err := tlog.ProveRecord(size, index, hashes)
		check(err, "inclusion")
		check(tlog.CheckRecord(proof, size, root, index, leaves[index]), "inclusion")
		old := 1 + random.Int63n(size)
		before, err := tlog.TreeHash(old, hashes)
		check(err, "root")
		consistent, err := tlog.ProveTree(size, old, hashes)
		check(err, "consistency")
		check(tlog.CheckTree(consistent, size, root, old, before), "consistency")
	}

	// Nothing lies there that was not read.
	written := 0
	for _, level := range []string{"0", "1", "2"} {
		check(filepath.Walk(filepath.Join(folder, "tile", level), func(path string, info os.FileInfo, err error) error {
			if err == nil && !info.IsDir() {
				written++
				relative, _ := filepath.Rel(folder, path)
				if !from.read[filepath.ToSlash(relative)] {
					// Whole tiles above the leaves are recomputed from those below, so they are held against them here.
					return same(from, relative, hashes)
				}
			}
			return err
		}), "tiles")
	}
	fmt.Printf("%d entries, %d tiles, 100 inclusion and 100 consistency proofs\n", size, written)
}

// Whether a tile that was not needed so far holds what the tree says.
func same(from files, path string, hashes tlog.HashReader) error {
	var level int
	_, err := fmt.Sscanf(path, "tile/%d/", &level)
	check(err, path)
	tile, err := tlog.ParseTilePath(strings.Replace(path, "tile/", fmt.Sprintf("tile/%d/", height), 1))
	check(err, path)
	data, err := from.ReadTiles([]tlog.Tile{tile})
	check(err, path)
	for i := 0; i < tile.W; i++ {
		stored, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(level*height, tile.N<<height+int64(i))})
		check(err, path)
		if !bytes.Equal(stored[0][:], data[0][i*32:(i+1)*32]) {
			return fmt.Errorf("%s does not hold the tree's hashes", path)
		}
	}
	return nil
}
