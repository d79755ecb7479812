//go:build clouds

package clouds

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/bedfellow/bedfellow/provision"
)

// importTask is the making of a snapshot of a file.
const importTask = "import-snapshot-task"

// withUntaggedImages adds the images whose maker was killed before it could tag them: their snapshot bears the mark. None of them is kept.
func (a *awsCloud) withUntaggedImages(ctx context.Context, found []thing) ([]thing, error) {
	marked := map[string]map[string]string{}
	for _, t := range found {
		if t.kind == "snapshot" {
			marked[t.id] = t.tags
		}
	}
	if len(marked) == 0 {
		return found, nil
	}
	pages := ec2.NewDescribeImagesPaginator(a.ec2, &ec2.DescribeImagesInput{Owners: []string{"self"}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list images: %w", plainly(err))
		}
		for _, i := range page.Images {
			if tagsOf(i.Tags)[TagBed] != "" {
				continue
			}
			for _, d := range i.BlockDeviceMappings {
				if d.Ebs == nil || marked[aws.ToString(d.Ebs.SnapshotId)] == nil {
					continue
				}
				tags := maps.Clone(marked[*d.Ebs.SnapshotId])
				delete(tags, TagKeep)
				found = append(found, thing{kind: "image", id: aws.ToString(i.ImageId), tags: tags})
				break
			}
		}
	}
	return found, nil
}

// withoutEndedImports leaves out the imports of which nothing is left, or a snapshot that has a mark of its own: EC2 shows them long after.
func (a *awsCloud) withoutEndedImports(ctx context.Context, found []thing) ([]thing, error) {
	if !slices.ContainsFunc(found, func(t thing) bool { return t.kind == importTask }) {
		return found, nil
	}
	var alive []string
	pages := ec2.NewDescribeImportSnapshotTasksPaginator(a.ec2, &ec2.DescribeImportSnapshotTasksInput{})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("list imports of snapshots: %w", plainly(err))
		}
		for _, task := range page.ImportSnapshotTasks {
			d := task.SnapshotTaskDetail
			if d == nil {
				continue
			}
			left := aws.ToString(d.Status) == "active"
			if made := aws.ToString(d.SnapshotId); made != "" && !slices.ContainsFunc(found, func(t thing) bool { return t.kind == "snapshot" && t.id == made }) {
				there, err := a.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{OwnerIds: []string{"self"}, Filters: []types.Filter{filter("snapshot-id", made)}})
				if err != nil {
					return nil, fmt.Errorf("look for snapshot %s: %w", made, plainly(err))
				}
				left = len(there.Snapshots) > 0
			}
			if left {
				alive = append(alive, aws.ToString(task.ImportTaskId))
			}
		}
	}
	return slices.DeleteFunc(found, func(t thing) bool { return t.kind == importTask && !slices.Contains(alive, t.id) }), nil
}

// removeImport ends an import that goes on, and removes what one has made whose maker was killed before it could mark that.
func (a *awsCloud) removeImport(ctx context.Context, id string) error {
	found, err := a.ec2.DescribeImportSnapshotTasks(ctx, &ec2.DescribeImportSnapshotTasksInput{ImportTaskIds: []string{id}})
	if err != nil {
		return err
	}
	for _, task := range found.ImportSnapshotTasks {
		switch d := task.SnapshotTaskDetail; {
		case d == nil || aws.ToString(task.ImportTaskId) != id:
		case d.SnapshotId != nil:
			_, err = a.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: d.SnapshotId})
		case aws.ToString(d.Status) == "active":
			_, err = a.ec2.CancelImportTask(ctx, &ec2.CancelImportTaskInput{ImportTaskId: &id})
		}
	}
	return err
}

// KeptImages are the machine images that outlast their beds, with how many instances are of each, whosever they are.
func (a *awsCloud) KeptImages(ctx context.Context) ([]provision.KeptImage, error) {
	found, err := a.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{Owners: []string{"self"}, Filters: []types.Filter{filter("tag-key", TagKeep)}})
	if err != nil {
		return nil, fmt.Errorf("list machine images: %w", plainly(err))
	}
	var kept []provision.KeptImage
	for _, i := range found.Images {
		k := provision.KeptImage{ID: aws.ToString(i.ImageId), Name: aws.ToString(i.Name), Digest: tagsOf(i.Tags)[TagDigest]}
		of, err := a.filtered(ctx, filter("image-id", k.ID))
		if err != nil {
			return nil, err
		}
		k.Used = len(of)
		kept = append(kept, k)
	}
	return kept, nil
}

// RemoveImage removes one, and the snapshot that was made with it.
func (a *awsCloud) RemoveImage(ctx context.Context, id string) error {
	found, err := a.ec2.DescribeImages(ctx, &ec2.DescribeImagesInput{ImageIds: []string{id}})
	if err != nil {
		return fmt.Errorf("look at machine image %s: %w", id, plainly(err))
	}
	if _, err := a.ec2.DeregisterImage(ctx, &ec2.DeregisterImageInput{ImageId: &id}); err != nil {
		return fmt.Errorf("remove machine image %s: %w", id, plainly(err))
	}
	for _, i := range found.Images {
		tags := tagsOf(i.Tags)
		snapshots, err := a.ec2.DescribeSnapshots(ctx, &ec2.DescribeSnapshotsInput{
			OwnerIds: []string{"self"}, Filters: []types.Filter{filter("tag:"+TagID, tags[TagID]), filter("tag:"+TagDigest, tags[TagDigest])},
		})
		if err != nil {
			return fmt.Errorf("look for the snapshot of machine image %s: %w", id, plainly(err))
		}
		for _, s := range snapshots.Snapshots {
			if _, err := a.ec2.DeleteSnapshot(ctx, &ec2.DeleteSnapshotInput{SnapshotId: s.SnapshotId}); err != nil {
				return fmt.Errorf("remove snapshot %s of machine image %s: %w", aws.ToString(s.SnapshotId), id, plainly(err))
			}
		}
	}
	return nil
}
