package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
)

// Images lists the images of the agent's store.
func (c *Client) Images(ctx context.Context) ([]Image, error) {
	var out struct {
		Images []Image `json:"images"`
	}
	return out.Images, c.call(ctx, http.MethodGet, "/berth/v1/images", nil, &out)
}

// ImportFolder tells what became of the files in the agent's import folder.
func (c *Client) ImportFolder(ctx context.Context) ([]ImportedFile, error) {
	var out struct {
		Files []ImportedFile `json:"importFolder"`
	}
	return out.Files, c.call(ctx, http.MethodGet, "/berth/v1/images", nil, &out)
}

// VerifyImages has all stored images read and compared, and mended if repair is
// set, telling each how far it is. It returns what was found damaged.
func (c *Client) VerifyImages(ctx context.Context, repair bool, each func(Progress)) ([]Damaged, error) {
	q := url.Values{}
	if repair {
		q.Set("repair", "true")
	}
	res, err := c.do(ctx, http.MethodPost, "/berth/v1/images/verify", q, nil)
	if err != nil {
		return nil, err
	}
	var found *[]Damaged
	err = stream(res, func(e ImageEvent) error {
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case e.Damaged != nil:
			found = e.Damaged
		default:
			each(e.Progress)
		}
		return nil
	})
	if err == nil && found == nil {
		err = errNoResult
	}
	if err != nil {
		return nil, err
	}
	return *found, nil
}

var errNoResult = errors.New("the agent ended its answer without a result (did it stop? see `berth version`)")

// Login is what a registry asks for.
type Login struct {
	Username string `json:"username"`
	Password string `json:"password"`
}

// Pull fetches an image, telling each how far it is. login may be nil.
func (c *Client) Pull(ctx context.Context, ref string, login *Login, each func(Progress)) (Image, error) {
	var body io.Reader
	if login != nil {
		b, err := json.Marshal(login)
		if err != nil {
			return Image{}, err
		}
		body = bytes.NewReader(b)
	}
	images, err := c.images(ctx, "/berth/v1/images/pull", url.Values{"image": {ref}}, body, each)
	if err != nil || len(images) == 0 {
		return Image{}, err
	}
	return images[0], nil
}

// Import gives an archive of images to the agent, telling each how far it is.
func (c *Client) Import(ctx context.Context, archive io.Reader, each func(Progress)) ([]Image, error) {
	return c.images(ctx, "/berth/v1/images/import", nil, archive, each)
}

func (c *Client) images(ctx context.Context, path string, q url.Values, body io.Reader, each func(Progress)) ([]Image, error) {
	res, err := c.do(ctx, http.MethodPost, path, q, body)
	if err != nil {
		return nil, err
	}
	var images []Image
	ended := false
	err = stream(res, func(e ImageEvent) error {
		switch {
		case e.Error != "":
			return errors.New(e.Error)
		case e.Image != nil:
			images, ended = append(images, *e.Image), true
		case e.Images != nil:
			images, ended = append(images, e.Images...), true
		default:
			each(e.Progress)
		}
		return nil
	})
	if err == nil && !ended {
		err = errNoResult
	}
	return images, err
}

// RemoveImage removes an image by tag, digest or ID.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/berth/v1/images", url.Values{"image": {ref}}, nil)
}
