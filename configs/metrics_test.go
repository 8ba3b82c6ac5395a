package configs

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMetricsStayOnThisComputerUnlessTheOperatorSaysOtherwise(t *testing.T) {
	for _, at := range []string{"127.0.0.1:9464", "[::1]:9464", "127.1.2.3:0"} {
		c, err := load(t, "", nil, "--metrics", at)
		require.NoError(t, err)
		assert.Equal(t, at, c.Metrics.Listen)
	}
	for _, at := range []string{"0.0.0.0:9464", "[::]:9464", "192.0.2.1:9464"} {
		_, err := load(t, "version: 1\nmetrics: {listen: '"+at+"'}", nil)
		require.Error(t, err)
		assert.Contains(t, problems(t, err)[0], "can be reached from other computers")
		assert.Contains(t, problems(t, err)[0], "metrics.exposed: true")
		_, err = load(t, "version: 1\nmetrics: {listen: '"+at+"', exposed: true}", nil)
		assert.NoError(t, err)
	}
	for _, at := range []string{"9464", ":9464", "localhost:9464", "127.0.0.1"} {
		_, err := load(t, "", nil, "--metrics", at)
		require.Error(t, err)
		assert.Contains(t, problems(t, err)[0], "is no address and port")
	}
}
