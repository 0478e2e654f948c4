"""The pictures of a page: its images, and views and neighbours of those at both ends of the
ranking, as many as fit.
"""

import json
from dataclasses import dataclass

import numpy as np

from memorization.data.augmentations import Draw
from memorization.measuring.scores import ScoreSettings
from memorization.reporting.blocks import clean
from memorization.reporting.near_images import find_neighbors
from memorization.reporting.sprites import (
    Sprites,
    fitting_size,
    shrink_images,
    shrink_pictures,
    views_of,
)

SHOWN_VIEWS = 6  # of each image
MOST_WITH_NEIGHBORS = 5000  # candidates, those at both ends of the ranking
BYTES_A_ROW = 25  # of the place of its picture and of its views, about
NEIGHBOR = ("distance", "row", "kind", "picture", "split", "index", "subset", "label", "file")
OF_ROW = NEIGHBOR[:3]  # of a neighbour with a row, which has all else
BATCH = 16  # images whose views and neighbours are added together
FOR_CANDIDATES = 0.75  # share of the bytes that candidates' own pictures may take


@dataclass(frozen=True, eq=False)
class Viewing:
    """How the views of images were scored. recipes: of the views; views: their number; draw: a
    Draw.
    """

    recipes: list
    views: int
    draw: Draw

    @classmethod
    def of(cls, run, summary):
        """That of the first seed of scores. run: a Run; summary: a ScoresSummary."""
        settings = ScoreSettings.model_validate(summary.settings)
        draw = Draw(summary.seeds[0], "scoring", patch=run.config.encoder.patch_size)
        return cls(settings.recipes(run.recipes), settings.views, draw)


class Pictures:
    """Pictures of N rows, and what they leave out.

    tile: N places [sheet, tile], None for an image without a picture; details: {row: its views and
    neighbours}; notes: sentences.
    """

    def __init__(self, run, rows):
        self.run, self.rows, self.sprites = run, rows, Sprites(0)
        self.tile, self.details, self.notes = [None] * len(rows.index), {}, {}
        self._places = {}  # {(split, index): place} of neighbours

    def add(self, most_bytes, viewing=None):
        """Note neighbours, and add pictures, as many as a number of bytes allows, with what the
        page's script reads of them. viewing: a Viewing; None for no views.
        """
        self._add_neighbors()
        of_text = len(json.dumps(self.plain_details())) + BYTES_A_ROW * len(self.tile)
        self.sprites = Sprites(max(0, most_bytes - of_text))
        self._add_candidates()
        if viewing is not None:
            self._add_ends(viewing)
        self._add_others()

    def _add_candidates(self):
        """Add the candidates' own pictures: all, or those at both ends of the ranking."""
        train, n = self.run.images.train, self.rows.n_candidates
        most = FOR_CANDIDATES * self.sprites.most_bytes
        self.size = fitting_size(train, self.rows.index[:n], most)
        ends = order_from_both_ends(n)
        places = self.sprites.add(shrink_images(train, self.rows.index[:n], self.size))
        if len(places) < n:
            self.sprites = Sprites(self.sprites.most_bytes)
            places = self.sprites.add(shrink_images(train, self.rows.index[ends], self.size))
        else:
            ends = np.arange(n)
        for row, place in zip(ends.tolist(), places):
            self.tile[row] = place
        self._note_size(n, len(places))

    def _note_size(self, n, n_embedded):
        sentences = []
        if self.size < self.run.images.train.size:
            size = f"Pictures are shrunk from {self.run.images.train.size} to {self.size} pixels."
            sentences.append(size)
        if n_embedded < n:
            some = f"Of {n:,} candidates the {n_embedded:,} at both ends of the ranking have a "
            sentences.append(f"{some}picture here: more do not fit into the page.")
        self.notes["pictures"] = " ".join(sentences)

    def _add_neighbors(self):
        """Note the nearest neighbours of candidates; their pictures come later."""
        rows = np.sort(order_from_both_ends(self.rows.n_candidates)[:MOST_WITH_NEIGHBORS])
        neighbors = find_neighbors(self.run, self.rows.index[rows])
        if neighbors is None:
            many = "Nearest neighbours were not looked for: the subsets have too many images."
            self.notes["neighbors"] = many
            return
        for at, row in enumerate(rows.tolist()):
            of_row = zip(*(values[at].tolist() for values in neighbors.of_candidates))
            nearest = [self._describe(neighbors, *values) for values in of_row]
            self.details[row] = {"neighbors": nearest}
        self.notes["neighbors"] = (
            "Nearest among all images of the subsets, mirrored ones too, by gray images of 12 x 12 "
            f"pixels without their mean and scale; the distance is at most 2. {neighbors.source}"
        )

    def _describe(self, neighbors, place, distance, is_same, is_near):
        """A neighbour, a dict of the keys NEIGHBOR. place: of its image in Neighbors."""
        split, index = str(neighbors.split[place]), int(neighbors.index[place])
        own = getattr(self.run.images, split)
        return {
            "distance": round(distance, 4),
            "row": self.rows.row_of.get((split, index)),
            "kind": "same pixels" if is_same else "nearly equal" if is_near else None,
            "picture": None,
            "split": split,
            "index": index,
            "subset": str(neighbors.subset[place]),
            "label": int(own.labels[index]),
            "file": clean(own.names[index]) if own.names is not None else None,
        }

    def plain_details(self):
        """{row: {"neighbors": lists of values in the order of NEIGHBOR, "views": places}} as the
        page's script reads it. Of a neighbour with a row the values after its kind are left out.
        """
        details = {}
        for row, detail in self.details.items():
            plain = []
            for one in detail["neighbors"]:
                values = [one[key] for key in (NEIGHBOR if one["row"] is None else OF_ROW)]
                while values[-1] is None:
                    values.pop()
                plain.append(values)
            details[str(row)] = detail | {"neighbors": plain}
        return details

    def _add_ends(self, viewing):
        """Add views and pictures of neighbours, of nearly equal ones first, then of the images at
        both ends of the ranking, as many as fit. viewing: a Viewing.
        """
        n, count = self.rows.n_candidates, min(SHOWN_VIEWS, viewing.views)
        rows_of_copies = [row for row in self.details if self._has_copy(row)]
        fits = self._add_pictures_of_neighbors(rows_of_copies)
        ends, with_views = order_from_both_ends(n), 0
        for start in range(0, n, BATCH):
            rows = ends[start : start + BATCH].tolist()
            if not fits or not self._add_views(rows, viewing, count):
                break
            with_views += len(rows)
            if not self._add_pictures_of_neighbors(rows):
                break
        seed = f"as seed {viewing.draw.seed} drew them"
        of_all = f"The first {count} of {viewing.views} views" if count < viewing.views else "Views"
        masked = any(recipe.mask_ratio for recipe in viewing.recipes)
        hidden = "; hidden patches are gray" if masked else ""
        self.notes["views"] = f"{of_all}, {seed}, before normalization{hidden}."
        self.notes["no_views"] = (
            f"Views are shown of the {with_views:,} images at both ends of the ranking alone: more "
            "do not fit into the page."
        )

    def _has_copy(self, row):
        return any(one["kind"] for one in self.details[row]["neighbors"])

    def _add_views(self, rows, viewing, count):
        """Add the views of some rows. Returns whether they fit."""
        train = self.run.images.train
        views = views_of(train, self.rows.index[rows], viewing.recipes, count, viewing.draw)
        n_views = views.shape[1]
        places = self.sprites.add(shrink_pictures(views.reshape(-1, *views.shape[2:])))
        for at, row in enumerate(rows):
            of_row = places[at * n_views : (at + 1) * n_views]
            if len(of_row) == n_views:
                self.details.setdefault(row, {"neighbors": []})["views"] = of_row
        return len(places) == len(rows) * n_views

    def _add_pictures_of_neighbors(self, rows):
        """Add the pictures of the neighbours of some rows that have none yet. Returns whether they
        fit.
        """
        new = {"train": {}, "test": {}}  # {index: None}, in order
        for row in rows:
            for one in self.details.get(row, {"neighbors": []})["neighbors"]:
                if self._place_of(one) is None:
                    new[one["split"]][one["index"]] = None
        fits = True
        for split, indices in new.items():
            if indices:
                pixels = shrink_images(getattr(self.run.images, split), list(indices), self.size)
                places = self.sprites.add(pixels)
                fits = fits and len(places) == len(indices)
                for index, place in zip(indices, places):
                    self._places[split, index] = place
        return fits

    def _place_of(self, neighbor):
        """The place of the picture of a neighbour, or None."""
        row = neighbor["row"]
        if row is not None and self.tile[row] is not None:
            return self.tile[row]
        return self._places.get((neighbor["split"], neighbor["index"]))

    def _add_others(self):
        """Add pictures of rows of the other subsets, as many as fit, and note where those of
        neighbours are.
        """
        train, test = self.run.images.train, self.run.images.test
        for place, at in self._places.items():
            if place in self.rows.row_of:
                self.tile[self.rows.row_of[place]] = at
        for split in (train, test):
            rows = [
                row
                for row in range(self.rows.n_candidates, len(self.tile))
                if self.rows.split[row] == split.name
                and (split.name, int(self.rows.index[row])) not in self._places
            ]
            if rows:
                pixels = shrink_images(split, self.rows.index[rows], self.size)
                for row, place in zip(rows, self.sprites.add(pixels)):
                    self.tile[row] = place
        for detail in self.details.values():
            for one in detail["neighbors"]:
                one["picture"] = self._place_of(one)
        n_missing = sum(place is None for place in self.tile[self.rows.n_candidates :])
        if n_missing:
            more = f"{n_missing:,} images of other subsets have no picture here."
            self.notes["pictures"] = f"{self.notes['pictures']} {more}".strip()


def order_from_both_ends(n):
    """0, n - 1, 1, n - 2, ...: (n,) int64."""
    order = np.empty(n, dtype=np.int64)
    order[::2] = np.arange((n + 1) // 2)
    order[1::2] = np.arange(n - 1, (n + 1) // 2 - 1, -1)
    return order
